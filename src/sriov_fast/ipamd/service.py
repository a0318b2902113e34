"""The address service, independent of the kind of store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from sriov_fast.ipamd import backup
from sriov_fast.ipamd.config import Config
from sriov_fast.ipamd.config_store import PAGE, Registry
from sriov_fast.ipamd.errors import Exhausted, Invalid, NotFound, ServiceError, Unavailable
from sriov_fast.ipamd.model import Allocation, Ask, Leased, PoolUse, canonical_ip
from sriov_fast.ipamd.pools import LANES, Shape
from sriov_fast.ipamd.schema import ROOT, Keys, Lane, lanes, unescape, unpack_own
from sriov_fast.ipamd.shards import Hints
from sriov_fast.ipamd.snapshot import Book
from sriov_fast.ipamd.store import Rows, Store, View, prefix_end
from sriov_fast.ipamd.transactions import Claim, Draw, Dry, Grant, Release, Stale, require

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")

PATIENCE = 15.0  # seconds of retries for a request
MOST = 2**63 - 1  # counts in JSON


class Service:
    """Allocates and releases addresses. Results are durable; errors are `ServiceError`."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._registry = Registry(store)
        self._hints = Hints()
        self._gate = asyncio.Semaphore(store.together)

    def _now(self) -> int:
        return int(self._clock() * 1000)

    async def _current(self, work: Callable[[Book], Awaitable[T]]) -> T:
        """Run work with the active configuration; a refusal under an old one is tried again."""
        book = await self._registry.book()
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                return await work(book)
            except Stale:
                book = await self._registry.reload(book)
            except Unavailable:
                raise
            except ServiceError:
                newer = await self._registry.reload()
                if newer.root == book.root:
                    raise
                book = newer
        raise Unavailable(f"tried for {PATIENCE:g} seconds, and others were always first")

    async def allocate(self, ask: Ask) -> tuple[Allocation, bool]:
        """Return the owner's allocation, and whether it is new."""
        async with self._gate:
            document, created = await self._current(lambda book: self._allocate(book, ask))
        return Allocation.model_validate(document), created

    async def _allocate(self, book: Book, ask: Ask) -> tuple[dict[str, Any], bool]:
        net = book.net(ask.network)
        fixed = net.assigned(ask.pod_id, ask.host_ip)
        placed = {shape.version for shape, _ in fixed.places} if fixed else set()
        shapes = [shape for shape in net.shapes(ask.host_ip) if shape.version not in placed]
        draws: dict[str, Draw] = {}
        exhausted: Exhausted | None = None
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for shape in shapes:
                if shape.ident not in draws:
                    try:
                        draws[shape.ident] = await self._aim(book, shape)
                    except Exhausted as error:  # the owner may have an allocation or a reserved address
                        exhausted = error
                        draws[shape.ident] = Draw(shape, shape.lanes[0], waiting=True)
            outcome = await self._grant(Grant(book, ask, list(draws.values()), self._now()))
            if not isinstance(outcome, Dry):
                return outcome
            if exhausted is not None:
                raise exhausted
            self._hints.dry(outcome.shape.ident, outcome.lane)
            del draws[outcome.shape.ident]
        raise Unavailable(f"network: {ask.network!r}: tried for {PATIENCE:g} seconds, and others were first")

    async def _grant(self, grant: Grant) -> tuple[dict[str, Any], bool] | Dry:
        with self._drawing(grant.draws):
            return await self._store.run(grant)

    @contextmanager
    def _drawing(self, draws: Iterable[Draw]) -> Iterator[None]:
        """Mark shards as used, so that other requests of this process prefer others."""
        for draw in draws:
            self._hints.enter(draw.shape.ident, draw.lane)
        try:
            yield
        finally:
            for draw in draws:
                self._hints.leave(draw.shape.ident, draw.lane)

    async def _aim(self, book: Book, shape: Shape) -> Draw:
        """Choose a shard by the hints; read all shards if the hints name none."""
        number = self._hints.pick(shape)
        if number is not None:
            return Draw(shape, number)
        found = await self._store.read(lambda view: _lanes(view, book, shape))
        expired = self._now() - 1000 * book.net(shape.pool.network).grace
        fresh = [at for at, lane in found.items() if lane.fresh(shape, at, expired)]
        self._hints.learn(shape, fresh)
        number = self._hints.pick(shape, fresh)
        if number is not None:
            return Draw(shape, number)
        waiting = sorted((lane.oldest, at) for at, lane in found.items() if lane.freed)
        if not waiting:
            raise Exhausted(f"pool: {shape.pool.name!r}: all {shape.total} addresses are taken")
        return Draw(shape, self._hints.quiet(shape, [at for _, at in waiting]), waiting=True)

    async def find(self, network: str, container_id: str, ifname: str) -> Allocation:
        """Return the owner's allocation, or raise `NotFound`."""
        return await self._current(lambda book: self._find(book, network, container_id, ifname))

    async def _find(self, book: Book, network: str, container_id: str, ifname: str) -> Allocation:
        book.net(network)
        key = Keys(book.generation).own(network, container_id, ifname)

        async def look(view: View) -> bytes | None:
            (root, value), _ = await view.fetch([ROOT, key])
            require(book, root)
            return value

        value = await self._store.read(look)
        if value is None:
            raise NotFound(
                f"allocation: container {container_id!r} interface {ifname!r} holds nothing in {network!r}"
            )
        return Allocation.model_validate(unpack_own(value)[0])

    async def release(
        self,
        owner: tuple[str, str, str],
        host_ip: str,
        pod_id: str | None = None,
        lease: str | None = None,
    ) -> bool:
        """Release the allocation of an owner (network, container ID, ifname); say whether there was one.

        With a lease, only the allocation with this lease is released. An allocation of another host or pod
        is a `Conflict`. `Forbidden` is raised for callers that may not act for the host.
        """
        claim = Claim(owner, _host(host_ip), pod_id, lease)

        async def free(book: Book) -> bool:
            held = await self._store.run(Release(book, claim, self._now()))
            for it in held:
                self._hints.wet(it.ident, it.address % LANES)
            return bool(held)

        async with self._gate:
            return await self._current(free)

    async def owners(self, network: str, host_ip: str, after: tuple[str, str] | None = None) -> list[Leased]:
        """Return a sorted page of the owners of a host, after (container_id, ifname) if given."""
        book, host = await self._registry.reload(), _host(host_ip)
        book.net(network)
        keys = Keys(book.generation)
        prefix = keys.host(network, host)
        first = keys.host(network, host, after) + "\x00" if after else prefix
        _, (rows,) = await self._store.read(lambda view: view.fetch([], [(first, prefix_end(prefix), PAGE)]))
        return _leased(prefix, rows)

    async def status(self, network: str, host_ip: str) -> list[PoolUse]:
        """Return the use of a host's pools; raise `Exhausted` if one of them is full.

        An allocation needs an address of each pool.
        """

        async def look(book: Book) -> list[PoolUse]:
            shapes = book.net(network).shapes(_host(host_ip))
            found = await self._store.read(lambda view: _all_lanes(view, book, shapes))
            for shape, its in zip(shapes, found, strict=True):
                if not any(lane.freed or lane.fresh(shape, at, 0) for at, lane in its.items()):
                    raise Exhausted(f"pool: {shape.pool.name!r}: all {shape.total} addresses are taken")
            return [_use(shape, its) for shape, its in zip(shapes, found, strict=True)]

        return await self._current(look)

    async def usage(self) -> list[PoolUse]:
        """Return the use of all pools."""

        async def look(book: Book) -> list[PoolUse]:
            shapes = [shape for net in book.nets.values() for shape in net.pools]
            found = await self._store.read(lambda view: _all_lanes(view, book, shapes))
            return [_use(shape, its) for shape, its in zip(shapes, found, strict=True)]

        return await self._current(look)

    async def allocations(self, network: str | None = None, host_ip: str | None = None) -> list[Allocation]:
        """Return the allocations, of one network or host if given."""
        book = await self._registry.reload()
        if network is not None:
            book.net(network)
        host = None if host_ip is None else _host(host_ip)
        documents = await self._store.read(lambda view: backup.held(view, book, network))
        return [Allocation.model_validate(it) for it in documents if host in (None, it["host_ip"])]

    async def config(self) -> tuple[Config, str]:
        """Return the configuration and its revision."""
        book = await self._registry.reload()
        return book.config, str(book.revision)

    async def configure(self, config: Config, revision: str | None) -> str:
        """Replace the configuration of this revision (None: of any); return the new revision."""
        book = await self._registry.configure(config, revision)
        self._hints.forget(book.idents.values())
        return str(book.revision)

    async def export(self) -> dict[str, Any]:
        """Return a consistent backup of the store as a JSON document."""
        return await self._store.read(backup.export)

    async def load(self, document: Mapping[str, Any], *, replace: bool = False) -> None:
        """Import an exported document completely, or not at all.

        Current allocations that the document lacks are a `Conflict`, unless `replace` is set.
        """
        await backup.load(self._store, self._registry, document, replace=replace)

    async def ready(self) -> None:
        """Raise `Unavailable` unless the store answers and can be written."""
        await self._store.ready()

    async def close(self) -> None:
        """Finish running work, and close the store."""
        await self._store.close()


def _leased(prefix: str, rows: Rows) -> list[Leased]:
    """Return the owners from the list of a host."""
    parts = ((key[len(prefix) :].split("/"), value) for key, value in rows)
    return [
        Leased(container_id=container_id, ifname=unescape(ifname), lease=lease.decode())
        for (container_id, ifname), lease in parts
    ]


def _host(host_ip: str) -> str:
    try:
        return canonical_ip(host_ip)
    except ValueError as error:
        raise Invalid(f"host_ip: {error}") from None


async def _all_lanes(view: View, book: Book, shapes: Iterable[Shape]) -> list[dict[int, Lane]]:
    keys = Keys(book.generation)
    each = list(shapes)
    found: list[dict[int, Lane]] = []
    for at in range(0, len(each), PAGE // LANES):
        some = each[at : at + PAGE // LANES]
        (root,), spans = await view.fetch([ROOT], [(*keys.kind("lane", shape.ident), 0) for shape in some])
        require(book, root)
        found += [lanes(shape, rows) for shape, rows in zip(some, spans, strict=True)]
    return found


async def _lanes(view: View, book: Book, shape: Shape) -> dict[int, Lane]:
    return (await _all_lanes(view, book, [shape]))[0]


def _use(shape: Shape, its: Mapping[int, Lane]) -> PoolUse:
    used = sum(lane.used for lane in its.values()) + shape.reserved_inside
    total = min(shape.total, MOST)
    return PoolUse(name=shape.pool.name, network=shape.pool.network, total=total, used=min(used, total))


async def open_service(url: str, *, clock: Callable[[], float] = time.time, **options: Any) -> Service:
    """Open the service on `sqlite:///path` or `etcd://host:port,...?ca=&cert=&key=&prefix=`."""
    return Service(await open_store(url, **options), clock)


async def open_store(url: str, **options: Any) -> Store:
    """Open a store by its URL; `options` are those of the URL's query."""
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        from sriov_fast.ipamd.store_sqlite import open_sqlite

        return open_sqlite(parts.path)
    if parts.scheme == "etcd":
        from sriov_fast.ipamd.store_etcd import open_etcd

        return await open_etcd(url, **options)
    raise Invalid(f"store: {parts.scheme!r} is neither sqlite:///path nor etcd://host:port,...")
