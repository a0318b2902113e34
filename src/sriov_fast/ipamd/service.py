"""The address service, independent of the kind of store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from sriov_fast.ipamd import backup
from sriov_fast.ipamd.config import Config
from sriov_fast.ipamd.config_store import PAGE, ConfigStore
from sriov_fast.ipamd.errors import Exhausted, Invalid, NotFound, ServiceError, Unavailable, owner_text
from sriov_fast.ipamd.model import Allocation, Ask, Leased, PoolUse
from sriov_fast.ipamd.pools import SHARDS, AddressSpace
from sriov_fast.ipamd.schema import ROOT, RecordKeys, Shard, shards, unescape, unpack_own
from sriov_fast.ipamd.shards import ShardHints
from sriov_fast.ipamd.snapshot import Snapshot, pools_of
from sriov_fast.ipamd.store import Rows, Store, View, prefix_end
from sriov_fast.ipamd.transactions import Claim, Draw, Grant, Release, Stale, require

T = TypeVar("T")

PATIENCE = 15.0  # seconds of retries for a request
MOST = 2**63 - 1  # counts in JSON


class Service:
    """Allocates and releases addresses. Results are durable; errors are `ServiceError`.

    Arguments are valid, and addresses of hosts canonical (`model.Address`).
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._config_store = ConfigStore(store)
        self._hints = ShardHints()
        self._slots = asyncio.Semaphore(store.together)

    def _now(self) -> int:
        return int(self._clock() * 1000)

    async def _current(self, work: Callable[[Snapshot], Awaitable[T]]) -> T:
        """Run work with the active configuration; a refusal under an old one is tried again."""
        snapshot = await self._config_store.snapshot()
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                return await work(snapshot)
            except Stale:
                snapshot = await self._config_store.reload(snapshot)
            except Unavailable:
                raise
            except ServiceError:
                newer = await self._config_store.reload()
                if newer.root == snapshot.root:
                    raise
                snapshot = newer
        raise Unavailable(f"tried for {PATIENCE:g} seconds, and others were always first")

    async def allocate(self, ask: Ask) -> tuple[Allocation, bool]:
        """Return the owner's allocation, and whether it is new."""
        async with self._slots:
            document, created = await self._current(lambda snapshot: self._allocate(snapshot, ask))
        return Allocation.model_validate(document), created

    async def _allocate(self, snapshot: Snapshot, ask: Ask) -> tuple[dict[str, Any], bool]:
        net = snapshot.net(ask.network)
        fixed = net.assigned(ask.pod_id, ask.host_ip)
        placed = {space.version for space, _ in fixed.places} if fixed else set()
        spaces = [space for space in net.spaces(ask.host_ip) if space.version not in placed]
        draws: dict[str, Draw] = {}
        exhausted: Exhausted | None = None
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for space in spaces:
                if space.ident not in draws:
                    try:
                        draws[space.ident] = await self._aim(snapshot, space)
                    except Exhausted as error:  # the owner may have an allocation or a reserved address
                        exhausted = error
                        draws[space.ident] = Draw(space, space.shards[0], waiting=True)
            grant = Grant(snapshot, ask, list(draws.values()), self._now())
            with self._hints.drawing([(draw.space.ident, draw.shard) for draw in grant.draws]):
                outcome = await self._store.run(grant)
            if not isinstance(outcome, Draw):
                return outcome
            if exhausted is not None:
                raise exhausted
            self._hints.mark_empty(outcome.space.ident, outcome.shard)
            del draws[outcome.space.ident]
        raise Unavailable(f"network: {ask.network!r}: tried for {PATIENCE:g} seconds, and others were first")

    async def _aim(self, snapshot: Snapshot, space: AddressSpace) -> Draw:
        """Choose a shard by the hints; read all shards if the hints name none."""
        number = self._hints.pick(space)
        if number is not None:
            return Draw(space, number)
        ((_, found),) = await self._store.read(lambda view: _shards(view, snapshot, [space]))
        expired = self._now() - 1000 * snapshot.net(space.pool.network).grace
        fresh = [at for at, shard in found.items() if shard.fresh(space, at, expired)]
        self._hints.learn(space, fresh)
        number = self._hints.pick(space, fresh)
        if number is not None:
            return Draw(space, number)
        waiting = sorted((shard.oldest, at) for at, shard in found.items() if shard.freed)
        if not waiting:
            raise Exhausted(f"pool: {space.pool.name!r}: all {space.total} addresses are taken")
        return Draw(space, self._hints.quiet(space, [at for _, at in waiting]), waiting=True)

    async def find(self, network: str, container_id: str, ifname: str) -> Allocation:
        """Return the owner's allocation, or raise `NotFound`."""
        return await self._current(lambda snapshot: self._find(snapshot, network, container_id, ifname))

    async def _find(self, snapshot: Snapshot, network: str, container_id: str, ifname: str) -> Allocation:
        snapshot.net(network)
        key = RecordKeys(snapshot.generation).own(network, container_id, ifname)

        async def look(view: View) -> bytes | None:
            (root, value), _ = await view.fetch([ROOT, key])
            require(snapshot, root)
            return value

        value = await self._store.read(look)
        if value is None:
            raise NotFound(f"allocation: {owner_text(container_id, ifname)} holds nothing in {network!r}")
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
        claim = Claim(owner, host_ip, pod_id, lease)

        async def free(snapshot: Snapshot) -> bool:
            held = await self._store.run(Release(snapshot, claim, self._now()))
            for it in held:
                self._hints.mark_available(it.ident, it.address % SHARDS)
            return bool(held)

        async with self._slots:
            return await self._current(free)

    async def owners(self, network: str, host_ip: str, after: tuple[str, str] | None = None) -> list[Leased]:
        """Return a sorted page of the owners of a host, after (container_id, ifname) if given."""
        snapshot = await self._config_store.reload()
        snapshot.net(network)
        keys = RecordKeys(snapshot.generation)
        prefix = keys.host(network, host_ip)
        first = keys.host(network, host_ip, after) + "\x00" if after else prefix
        _, (rows,) = await self._store.read(lambda view: view.fetch([], [(first, prefix_end(prefix), PAGE)]))
        return _leased(prefix, rows)

    async def status(self, network: str, host_ip: str) -> list[PoolUse]:
        """Return the use of a host's pools; raise `Exhausted` if one of them is full.

        An allocation needs an address of each pool.
        """

        async def look(snapshot: Snapshot) -> list[PoolUse]:
            spaces = snapshot.net(network).spaces(host_ip)
            found = await self._store.read(lambda view: _shards(view, snapshot, spaces))
            for space, its in found:
                if not any(shard.freed or shard.fresh(space, at, 0) for at, shard in its.items()):
                    raise Exhausted(f"pool: {space.pool.name!r}: all {space.total} addresses are taken")
            return [_use(space, its) for space, its in found]

        return await self._current(look)

    async def usage(self) -> list[PoolUse]:
        """Return the use of all pools."""

        async def look(snapshot: Snapshot) -> list[PoolUse]:
            found = await self._store.read(lambda view: _shards(view, snapshot, pools_of(snapshot.nets)))
            return [_use(space, its) for space, its in found]

        return await self._current(look)

    async def allocations(self, network: str | None = None, host_ip: str | None = None) -> list[Allocation]:
        """Return the allocations, of one network or host if given."""
        snapshot = await self._config_store.reload()
        if network is not None:
            snapshot.net(network)
        documents = await self._store.read(lambda view: backup.held(view, snapshot, network))
        return [Allocation.model_validate(it) for it in documents if host_ip in (None, it["host_ip"])]

    async def config(self) -> tuple[Config, str]:
        """Return the configuration and its revision."""
        snapshot = await self._config_store.reload()
        return snapshot.config, str(snapshot.revision)

    async def configure(self, config: Config, revision: str | None) -> str:
        """Replace the configuration of this revision (None: of any); return the new revision."""
        return (await self.edit(lambda _: config, revision))[1]

    async def edit(self, change: Callable[[Config], Config], revision: str | None) -> tuple[Config, str]:
        """Change the configuration of this revision (None: of any); return the new one and its revision."""
        snapshot = await self._config_store.edit(change, revision)
        self._hints.forget(snapshot.idents.values())
        return snapshot.config, str(snapshot.revision)

    async def export(self) -> dict[str, Any]:
        """Return a consistent backup of the store as a JSON document."""
        return await self._store.read(backup.export)

    async def load(self, document: Mapping[str, Any], *, replace: bool = False) -> None:
        """Import an exported document completely, or not at all.

        Current allocations that the document lacks are a `Conflict`, unless `replace` is set.
        """
        await backup.load(self._store, self._config_store, document, replace=replace)

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


async def _shards(
    view: View, snapshot: Snapshot, spaces: Sequence[AddressSpace]
) -> list[tuple[AddressSpace, dict[int, Shard]]]:
    """Return pools with the state of their shards by number."""
    keys = RecordKeys(snapshot.generation)
    found: list[tuple[AddressSpace, dict[int, Shard]]] = []
    for at in range(0, max(1, len(spaces)), PAGE // SHARDS):  # once without pools: the snapshot may be old
        some = spaces[at : at + PAGE // SHARDS]
        (root,), spans = await view.fetch([ROOT], [(*keys.kind("lane", space.ident), 0) for space in some])
        require(snapshot, root)
        found += [(space, shards(space, rows)) for space, rows in zip(some, spans, strict=True)]
    return found


def _use(space: AddressSpace, its: Mapping[int, Shard]) -> PoolUse:
    used = sum(shard.used for shard in its.values()) + space.reserved_inside
    total = min(space.total, MOST)
    return PoolUse(name=space.pool.name, network=space.pool.network, total=total, used=min(used, total))


async def open_service(url: str, *, clock: Callable[[], float] = time.time) -> Service:
    """Open the service on `sqlite:///path` or `etcd://host:port,...?ca=&cert=&key=&prefix=`."""
    return Service(await open_store(url), clock)


async def open_store(url: str) -> Store:
    """Open a store by its URL."""
    scheme = url.partition(":")[0]
    if scheme == "sqlite":
        from sriov_fast.ipamd.store_sqlite import open_sqlite

        return open_sqlite(urlsplit(url).path)
    if scheme == "etcd":
        from sriov_fast.ipamd.store_etcd import EtcdStore, read_settings

        return EtcdStore(read_settings(url))
    raise Invalid(f"store: {scheme!r} is neither sqlite:///path nor etcd://host:port,...")
