"""Export the whole store as one JSON document, and import it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from ipaddress import ip_address, ip_interface
from typing import Any, Literal

from sriov_fast.ipamd.config import Config
from sriov_fast.ipamd.config_store import NAMED, PAGE, ConfigStore, read_snapshot, token
from sriov_fast.ipamd.errors import Conflict, Invalid, owner_text
from sriov_fast.ipamd.model import Address, Allocation, Document, Ifname, Name, PodId, Some, parse
from sriov_fast.ipamd.pools import SHARDS, AddressSpace
from sriov_fast.ipamd.schema import (
    NO_ROOT,
    ROOT,
    Held,
    RecordKeys,
    Shard,
    pack_freed,
    pack_own,
    pack_owner,
    unescape,
    unpack_own,
)
from sriov_fast.ipamd.snapshot import Snapshot, nets, pools_of
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


async def held(view: View, snapshot: Snapshot, network: str | None = None) -> list[dict[str, Any]]:
    """Return the documents of all allocations, or of one network."""
    span = RecordKeys(snapshot.generation).kind("own", network or "")
    return [unpack_own(value)[0] for _, value in await rows(view, *span)]


async def export(view: View) -> dict[str, Any]:
    """Return the backup of one snapshot of the store."""
    (root,), _ = await view.fetch([ROOT])
    snapshot = await read_snapshot(view, root or NO_ROOT)
    if snapshot is None:  # a consistent view has the root's document
        raise Conflict("config: is incomplete")
    spaces = {space.ident: space for space in pools_of(snapshot.nets)}
    sticky = []
    for key, value in await rows(view, *RecordKeys(snapshot.generation).kind("sticky")):
        ident, pod_id, ifname, address = key.split("/")[2:]
        space = spaces.get(ident)
        if space is not None:
            where = {"pool": space.pool.name, "pod_id": unescape(pod_id), "ifname": unescape(ifname)}
            sticky.append({**where, "address": space.text(int(address, 16)), "released": int(value)})
    sticky.sort(key=lambda it: (it["pool"], it["pod_id"], it["ifname"], it["address"]))
    config = snapshot.config.document()
    return {"version": 1, "config": config, "allocations": await held(view, snapshot), "sticky": sticky}


class _Records:
    """The records of a backup, in a new generation."""

    def __init__(self, document: Backup, idents: Mapping[str, str], generation: str) -> None:
        self.keys = RecordKeys(generation)
        self.nets = nets(document.config, idents)
        self.spaces = {space.pool.name: space for space in pools_of(self.nets)}
        self.found: dict[str, bytes] = {}
        self._shards: dict[str, Shard] = {}
        for at, allocation in enumerate(document.allocations):
            self._allocation(f"allocations[{at}]", allocation)
        for at, sticky in enumerate(document.sticky):
            self._sticky(f"sticky[{at}]", sticky)
        self.found.update((key, shard.pack()) for key, shard in self._shards.items())

    def _shard(self, space: AddressSpace, address: int) -> Shard:
        return self._shards.setdefault(self.keys.shard(space.ident, address % SHARDS), Shard(space, None))

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
        parts = [Held(space.ident, at, (space, at) not in assigned) for space, at in places]
        what = f"{owner_text(it.container_id, it.ifname)} in network {it.network!r}"
        self._put(where, what, self.keys.own(*owner), pack_own(it.document(), parts))
        self.found[self.keys.host(it.network, it.host_ip, owner[1:])] = it.lease.encode()
        for (space, address), part in zip(places, parts, strict=True):
            key = self.keys.address(space.ident, address)
            self._put(f"{where}.ips", repr(space.text(address)), key, pack_owner(*owner, it.pod_id))
            self._shard(space, address).used += part.counted

    def _place(self, where: str, network: str, text: str) -> tuple[AddressSpace, int]:
        ip = ip_interface(text).ip
        for space in self.nets[network].pools:
            if ip in space.subnet:
                return space, int(ip)
        raise Invalid(f"{where}: {text!r} is in no pool of network {network!r}")

    def _sticky(self, where: str, it: Sticky) -> None:
        space, address = self.spaces.get(it.pool), int(ip_address(it.address))
        if space is None:
            raise Invalid(f"{where}.pool: {it.pool!r} is not in config.pools")
        if ip_address(it.address) not in space.subnet:
            raise Invalid(f"{where}.address: {it.address!r} is not in pool {it.pool!r}")
        if not space.usable(address):
            return
        what = f"{it.address!r}"
        self._put(f"{where}.address", what, self.keys.address(space.ident, address), pack_freed(it.released))
        sticky = self.keys.sticky(space.ident, it.pod_id, it.ifname, address)
        self.found[sticky] = b"%d" % it.released
        self.found[self.keys.free(space.ident, address, it.released)] = sticky.encode()
        shard = self._shard(space, address)
        shard.oldest = min(shard.oldest, it.released) if shard.freed else it.released
        shard.freed += 1


async def _require_kept(
    old: Snapshot, kept: Mapping[tuple[str, str, str], Allocation], tx: Transaction
) -> None:
    """Refuse to drop or change an allocation."""
    tx.unchanged(*RecordKeys(old.generation).kind("own"))
    lost = []
    for document in await held(tx, old):
        it = Allocation.model_validate(document)
        if kept.get((it.network, it.container_id, it.ifname)) != it:
            lost.append(f"{owner_text(it.container_id, it.ifname)} in {it.network!r}")
    if lost:
        more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
        raise Conflict(f"allocations: not so in the document, and held: {', '.join(lost[:NAMED])}{more}")


async def load(
    store: Store, config_store: ConfigStore, document: Mapping[str, Any], *, replace: bool
) -> None:
    """Replace the contents of the store by a valid backup."""
    backup = await asyncio.to_thread(parse, Backup, document)
    idents = {it.name: token() for it in backup.config.pools}
    generation = token()
    records = await asyncio.to_thread(_Records, backup, idents, generation)
    old = await config_store.reload()
    named = await config_store.prepare(backup.config, idents, {})
    says = {"revision": old.revision + 1, "generation": generation, **named}
    kept = {(it.network, it.container_id, it.ifname): it for it in backup.allocations}
    check = None if replace else partial(_require_kept, old, kept)
    await store.write(sorted(records.found.items()))
    try:
        if not await config_store.activate(old, says, check):
            raise Conflict("config: was changed during the import")
    except Conflict:
        await _wipe(store, generation)
        raise
    await config_store.reload()
    await config_store.forget(old.document)
    await _wipe(store, old.generation)


async def _wipe(store: Store, generation: str) -> None:
    await store.wipe(f"{generation}/", prefix_end(f"{generation}/"))
