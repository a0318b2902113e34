"""Export the whole store as one JSON document, and import it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from ipaddress import ip_address, ip_interface
from typing import Any, Literal

from sriov_fast.ipamd.config import Config
from sriov_fast.ipamd.config_store import NAMED, PAGE, Registry, read_book, root_says, token
from sriov_fast.ipamd.errors import Conflict, Invalid
from sriov_fast.ipamd.model import Address, Allocation, Document, Ifname, Name, PodId, Some, parse
from sriov_fast.ipamd.pools import LANES, Shape
from sriov_fast.ipamd.schema import (
    NO_ROOT,
    ROOT,
    Held,
    Keys,
    Lane,
    pack,
    pack_freed,
    pack_own,
    pack_owner,
    unescape,
    unpack,
    unpack_own,
)
from sriov_fast.ipamd.snapshot import Book, nets
from sriov_fast.ipamd.store import Rows, Store, Transaction, View, prefix_end


class Sticky(Document):
    """A free address reserved for a pod's interface since `released` (ms since 1970)."""

    pool: Name
    pod_id: PodId
    ifname: Ifname
    address: Address
    released: int


class Backup(Document):
    """The exported document."""

    version: Literal[1]
    config: Config
    allocations: Some[Allocation] = ()
    sticky: Some[Sticky] = ()


async def rows(view: View, first: str, end: str) -> Rows:
    """Return all rows of a span, page by page."""
    found: Rows = []
    while True:
        _, (page,) = await view.fetch([], [(first, end, PAGE)])
        found += page
        if len(page) < PAGE:
            return found
        first = page[-1][0] + "\x00"


async def held(view: View, book: Book, network: str | None = None) -> list[dict[str, Any]]:
    """Return the documents of all allocations, or of one network."""
    span = Keys(book.generation).kind("own", network or "")
    return [unpack_own(value)[0] for _, value in await rows(view, *span)]


async def export(view: View) -> dict[str, Any]:
    """Return the backup of one snapshot of the store."""
    (root,), _ = await view.fetch([ROOT])
    book = await read_book(view, root or NO_ROOT)
    if book is None:  # a consistent view has the root's document
        raise Conflict("config: is incomplete")
    pools = {ident: name for name, ident in book.idents.items()}
    texts = {shape.ident: shape.text for net in book.nets.values() for shape in net.pools}
    sticky = []
    for key, value in await rows(view, *Keys(book.generation).kind("sticky")):
        ident, pod_id, ifname, address = key.split("/")[2:]
        if ident in pools:
            where = {"pool": pools[ident], "pod_id": unescape(pod_id), "ifname": unescape(ifname)}
            sticky.append({**where, "address": texts[ident](int(address, 16)), "released": int(value)})
    sticky.sort(key=lambda it: (it["pool"], it["pod_id"], it["ifname"], it["address"]))
    config = book.config.document()
    return {"version": 1, "config": config, "allocations": await held(view, book), "sticky": sticky}


class _Records:
    """The records of a backup, in a new generation."""

    def __init__(self, document: Backup, idents: Mapping[str, str], generation: str) -> None:
        self.keys = Keys(generation)
        self.nets = nets(document.config, idents)
        self.shapes = {shape.pool.name: shape for net in self.nets.values() for shape in net.pools}
        self.found: dict[str, bytes] = {}
        self._lanes: dict[str, Lane] = {}
        for at, allocation in enumerate(document.allocations):
            self._allocation(f"allocations[{at}]", allocation)
        for at, sticky in enumerate(document.sticky):
            self._sticky(f"sticky[{at}]", sticky)
        self.found.update((key, lane.pack()) for key, lane in self._lanes.items())

    def _lane(self, shape: Shape, address: int) -> Lane:
        return self._lanes.setdefault(self.keys.lane(shape.ident, address % LANES), Lane(shape, None))

    def _put(self, where: str, what: str, key: str, value: bytes) -> None:
        if key in self.found:
            raise Invalid(f"{where}: {what} is in the document twice")
        self.found[key] = value

    def _allocation(self, where: str, it: Allocation) -> None:
        if it.network not in self.nets:
            raise Invalid(f"{where}.network: {it.network!r} is not in config.networks")
        owner = (it.network, it.container_id, it.ifname)
        places = [self._place(f"{where}.ips", it.network, ip.address) for ip in it.ips]
        mine = self.nets[it.network].fixed.get(it.pod_id)
        assigned = mine.places if mine else ()
        parts = [Held(shape.ident, at, (shape, at) not in assigned) for shape, at in places]
        what = f"container {it.container_id!r} interface {it.ifname!r} in network {it.network!r}"
        self._put(where, what, self.keys.own(*owner), pack_own(it.document(), parts))
        self.found[self.keys.host(it.network, it.host_ip, owner[1:])] = it.lease.encode()
        for (shape, address), part in zip(places, parts, strict=True):
            key = self.keys.address(shape.ident, address)
            self._put(f"{where}.ips", repr(shape.text(address)), key, pack_owner(*owner, it.pod_id))
            self._lane(shape, address).used += part.counted

    def _place(self, where: str, network: str, text: str) -> tuple[Shape, int]:
        ip = ip_interface(text).ip
        for shape in self.nets[network].pools:
            if ip in shape.subnet:
                return shape, int(ip)
        raise Invalid(f"{where}: {text!r} is in no pool of network {network!r}")

    def _sticky(self, where: str, it: Sticky) -> None:
        shape, address = self.shapes.get(it.pool), int(ip_address(it.address))
        if shape is None:
            raise Invalid(f"{where}.pool: {it.pool!r} is not in config.pools")
        if ip_address(it.address) not in shape.subnet:
            raise Invalid(f"{where}.address: {it.address!r} is not in pool {it.pool!r}")
        if not shape.usable(address):
            return
        what = f"{it.address!r}"
        self._put(f"{where}.address", what, self.keys.address(shape.ident, address), pack_freed(it.released))
        sticky = self.keys.sticky(shape.ident, it.pod_id, it.ifname, address)
        self.found[sticky] = b"%d" % it.released
        self.found[self.keys.free(shape.ident, address, it.released)] = sticky.encode()
        lane = self._lane(shape, address)
        lane.oldest = min(lane.oldest, it.released) if lane.freed else it.released
        lane.freed += 1


class _Swap:
    """The transaction that activates another generation of records."""

    def __init__(
        self, old: Book, says: dict[str, Any], stay: Mapping[tuple[str, str, str], Allocation] | None
    ):
        self.old, self.says, self.stay = old, says, stay

    async def __call__(self, tx: Transaction) -> None:
        (root,), _ = await tx.fetch([ROOT])
        if root is not None and unpack(root) == self.says:
            return  # the commit of an earlier attempt succeeded
        if (root or NO_ROOT) != self.old.root:
            raise Conflict("config: was changed during the import")
        if self.stay is not None:
            await self._check(tx, self.stay)
        tx.put(ROOT, pack(self.says))

    async def _check(self, tx: Transaction, stay: Mapping[tuple[str, str, str], Allocation]) -> None:
        """Refuse to drop or change an allocation."""
        tx.unchanged(*Keys(self.old.generation).kind("own"))
        lost = []
        for document in await held(tx, self.old):
            it = Allocation.model_validate(document)
            if stay.get((it.network, it.container_id, it.ifname)) != it:
                lost.append(f"container {it.container_id!r} interface {it.ifname!r} in {it.network!r}")
        if lost:
            more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
            raise Conflict(f"allocations: not so in the document, and held: {', '.join(lost[:NAMED])}{more}")


async def load(store: Store, registry: Registry, document: Mapping[str, Any], *, replace: bool) -> None:
    """Replace the contents of the store by a valid backup."""
    backup = await asyncio.to_thread(parse, Backup, document)
    idents = {it.name: token() for it in backup.config.pools}
    generation = token()
    records = await asyncio.to_thread(_Records, backup, idents, generation)
    old = await registry.reload()
    named = await registry.prepare(backup.config, idents, {})
    says = {"revision": old.revision + 1, "generation": generation, **named}
    stay = None if replace else {(it.network, it.container_id, it.ifname): it for it in backup.allocations}
    await store.write(sorted(records.found.items()))
    try:
        await store.run(_Swap(old, says, stay))
    except Conflict:  # after other errors the new one may be active
        await _drop(store, registry, generation, named["document"])
        raise
    await registry.reload()
    await _drop(store, registry, old.generation, root_says(old)["document"])


async def _drop(store: Store, registry: Registry, generation: str, document: str) -> None:
    await registry.forget(document)
    await store.wipe(f"{generation}/", prefix_end(f"{generation}/"))
