"""The transactions that allocate and release addresses.

An address has at most one record, and each transaction that allocates the address compares this record.
A shard hands out its new addresses in one pass, and queues released ones by time. A transaction reads a
few records only, independent of the size and the use of the pool.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sriov_fast import ipamd_api
from sriov_fast.ipamd.errors import Conflict, owner_text
from sriov_fast.ipamd.model import Ask
from sriov_fast.ipamd.pools import SHARDS, AddressSpace
from sriov_fast.ipamd.schema import (
    END,
    NO_ROOT,
    ROOT,
    Free,
    Held,
    RecordKeys,
    Shard,
    pack_freed,
    pack_own,
    pack_owner,
    unpack,
    unpack_own,
)
from sriov_fast.ipamd.snapshot import Fixed, NetworkIndex, Snapshot, pools_of
from sriov_fast.ipamd.store import Changes, Rows, Span, Transaction, prefix_end

HEADS = 8  # entries of a queue in one read
WINDOW = 256  # address records in one read of the pass over new addresses


class Stale(Exception):  # noqa: N818 - a signal to read the configuration again
    """The configuration has changed since it was read."""


def require(snapshot: Snapshot, root: bytes | None) -> None:
    """Raise `Stale` unless the snapshot is the active configuration."""
    if (root or NO_ROOT) != snapshot.root:
        raise Stale


def _other(key: str, mine: str, document: Mapping[str, Any]) -> Conflict:
    """Return the error for an allocation of another pod or host."""
    owner, network = owner_text(document["container_id"], document["ifname"]), document["network"]
    return Conflict(
        f"{key}: {mine!r}: {owner} in network {network!r} holds addresses for {key} {document[key]!r}"
    )


@dataclass(frozen=True)
class Draw:
    """The shard to draw an address from; `waiting`: also one reserved for another pod."""

    space: AddressSpace
    shard: int
    waiting: bool = False


@dataclass
class _Queue:
    """A shard with the head of its queue of free addresses, in a transaction."""

    keys: RecordKeys
    space: AddressSpace
    number: int
    state: Shard
    heads: list[Free]
    draft: Changes

    def drop(self, entry: Free) -> None:
        """Remove an entry from the queue."""
        self.draft[entry.key] = None
        if entry.sticky:
            self.draft[entry.sticky] = None
        self.state.freed -= 1
        self.heads = [other for other in self.heads if other.key != entry.key]
        self.state.oldest = self.heads[0].released if self.heads else 0

    def pop(self) -> int:
        """Take the address at the head of the queue."""
        entry = self.heads[0]
        self.drop(entry)
        return entry.address

    def discard(self) -> None:
        """Drop unusable addresses from the head of the queue, and correct the counters."""
        if len(self.heads) < HEADS:
            self.state.freed = len(self.heads)
        while self.heads and not self.space.usable(self.heads[0].address):
            self.draft[self.keys.address(self.space.ident, self.heads[0].address)] = None
            self.drop(self.heads[0])
        self.state.oldest = self.heads[0].released if self.heads else 0

    def save(self) -> None:
        """Write the counters of the shard."""
        self.draft[self.keys.shard(self.space.ident, self.number)] = self.state.pack()


class Grant:
    """An allocation in one transaction."""

    def __init__(self, snapshot: Snapshot, ask: Ask, draws: Sequence[Draw], now: int) -> None:
        self.snapshot, self.ask, self.draws, self.now = snapshot, ask, draws, now
        self.net: NetworkIndex = snapshot.net(ask.network)
        self.fixed: Fixed | None = self.net.assigned(ask.pod_id, ask.host_ip)
        self.keys = RecordKeys(snapshot.generation)
        self.own = self.keys.own(ask.network, ask.container_id, ask.ifname)
        self.expired = now - 1000 * self.net.grace

    async def __call__(self, tx: Transaction) -> tuple[dict[str, Any], bool] | Draw:
        """Return the allocation and whether it is new, or a draw from an empty shard."""
        places = self.fixed.places if self.fixed else ()
        values, spans = await tx.fetch(
            [
                ROOT,
                self.own,
                *(self.keys.address(space.ident, at) for space, at in places),
                *(self.keys.shard(draw.space.ident, draw.shard) for draw in self.draws),
            ],
            [span for draw in self.draws for span in self._spans(draw)],
        )
        require(self.snapshot, values[0])
        if values[1] is not None:
            return self._again(values[1]), False
        draft: Changes = {}  # dropped if a shard is empty
        taken = []
        for (space, at), value in zip(places, values[2:], strict=False):
            await self._claim(tx, draft, (space, at), value)
            taken.append((space, at, False))
        for draw, value, *rows in zip(
            self.draws, values[2 + len(places) :], spans[::2], spans[1::2], strict=True
        ):
            address = await self._draw(tx, draft, draw, value, rows)
            if address is None:
                return draw
            taken.append((draw.space, address, True))
        document = self._write(draft, sorted(taken, key=lambda it: it[0].version))
        tx.changes.update(draft)
        return document, True

    def _spans(self, draw: Draw) -> list[Span]:
        """Return the spans of the queue's head and of the pod's reserved addresses."""
        prefix = self.keys.sticky(draw.space.ident, self.ask.pod_id, self.ask.ifname)
        return [
            self.keys.queue(draw.space.ident, draw.shard, HEADS),
            (prefix, prefix_end(prefix), 4),
        ]

    def _again(self, value: bytes) -> dict[str, Any]:
        """Return the existing allocation of the owner, if it is of the same pod and host."""
        document, _ = unpack_own(value)
        for key, mine in (("pod_id", self.ask.pod_id), ("host_ip", self.ask.host_ip)):
            if document[key] != mine:
                raise _other(key, mine, document)
        return document

    async def _claim(
        self, tx: Transaction, draft: Changes, place: tuple[AddressSpace, int], value: bytes | None
    ) -> None:
        """Take the address of a fixed assignment."""
        space, at = place
        if value is None:
            return
        record = unpack(value)
        if "owner" in record:
            _, container_id, ifname = record["owner"]
            raise Conflict(
                f"ips: {space.text(at)!r} is assigned to pod {self.ask.pod_id!r}"
                f" ({owner_text(self.ask.container_id, self.ask.ifname)}), and"
                f" {owner_text(container_id, ifname)} of pod {record['pod_id']!r} holds it"
            )
        await self._unqueue(tx, draft, place, record["released"])

    async def _unqueue(
        self, tx: Transaction, draft: Changes, place: tuple[AddressSpace, int], released: int
    ) -> Shard:
        """Remove a free address from the queue of its shard."""
        space, at = place
        key = self.keys.free(space.ident, at, released)
        shard = self.keys.shard(space.ident, at % SHARDS)
        (value, sticky), (rows,) = await tx.fetch(
            [shard, key], [self.keys.queue(space.ident, at % SHARDS, 2)]
        )
        state = Shard(space, value)
        queue = _Queue(self.keys, space, at % SHARDS, state, Free.read(rows), draft)
        first = bool(queue.heads) and queue.heads[0].key == key
        oldest = state.oldest
        queue.drop(Free(key, released, at, (sticky or b"").decode()))
        if not first:
            state.oldest = oldest
        queue.save()
        return state

    async def _draw(
        self, tx: Transaction, draft: Changes, draw: Draw, value: bytes | None, rows: list[Rows]
    ) -> int | None:
        """Take the address reserved for the pod, else one of the shard.

        None: the shard is empty, and its corrected counters are to be committed.
        """
        space = draw.space
        if rows[1]:
            address = await self._return(tx, draft, space, rows[1])
            if address is not None:
                return address
        state = Shard(space, value)
        before = state.pack()
        apart: Changes = {}
        queue = _Queue(self.keys, space, draw.shard, state, Free.read(rows[0]), apart)
        address = await self._from_shard(tx, queue, draw.waiting)
        if address is None:
            if state.pack() != before or apart:
                queue.save()
                tx.changes.update(apart)
            return None
        state.used += 1
        queue.save()
        draft.update(apart)
        return address

    async def _return(self, tx: Transaction, draft: Changes, space: AddressSpace, rows: Rows) -> int | None:
        """Take the address reserved for this pod, if there is one."""
        waiting = sorted(((int(value), int(key.rsplit("/", 1)[1], 16)) for key, value in rows), reverse=True)
        for released, address in waiting:
            if released <= self.expired or not space.usable(address):
                continue
            (value,), _ = await tx.fetch([self.keys.address(space.ident, address)])
            if value is None or unpack(value).get("released") != released:
                continue
            state = await self._unqueue(tx, draft, (space, address), released)
            state.used += 1
            draft[self.keys.shard(space.ident, address % SHARDS)] = state.pack()
            return address
        return None

    async def _from_shard(self, tx: Transaction, queue: _Queue, waiting: bool) -> int | None:
        """Take an address of a shard: a new one, else the earliest released."""
        state = queue.state
        address = await self._walk(tx, queue)
        if address is not None:
            return address
        queue.discard()
        if queue.heads and queue.heads[0].released <= self.expired:
            return queue.pop()
        if state.epoch != queue.space.epoch:  # the pool may have new addresses before the cursor
            state.epoch, state.cursor = queue.space.epoch, -1
            address = await self._walk(tx, queue)
            if address is not None:
                return address
        return queue.pop() if queue.heads and waiting else None

    async def _walk(self, tx: Transaction, queue: _Queue) -> int | None:
        """Move the cursor of the shard to the next address without a record."""
        space, state = queue.space, queue.state
        address = space.next(queue.number, state.cursor) if state.cursor < END else None
        while address is not None:
            key = self.keys.address(space.ident, address)
            if await tx.absent(key):
                state.cursor = address
                return address
            _, (rows,) = await tx.fetch([], [self.keys.addresses(space.ident, address, WINDOW)])
            known = {int(key.rsplit("/", 1)[1], 16) for key, _ in rows}
            while address in known:
                address = space.next(queue.number, address)
        state.cursor = END
        return None

    def _write(self, draft: Changes, taken: list[tuple[AddressSpace, int, bool]]) -> dict[str, Any]:
        """Add the records of an allocation to the changes, and return its document."""
        ask = self.ask
        owner = (ask.network, ask.container_id, ask.ifname)
        document = describe(ask, self.fixed, [(space, at) for space, at, _ in taken])
        lease = document[ipamd_api.LEASE] = secrets.token_hex(8)
        draft[self.own] = pack_own(document, [Held(space.ident, at, new) for space, at, new in taken])
        draft[self.keys.host(ask.network, ask.host_ip, owner[1:])] = lease.encode()
        for space, at, _ in taken:
            draft[self.keys.address(space.ident, at)] = pack_owner(*owner, ask.pod_id)
        return document


def describe(ask: Ask, fixed: Fixed | None, places: Sequence[tuple[AddressSpace, int]]) -> dict[str, Any]:
    """Return an allocation as a document."""
    document: dict[str, Any] = ask.model_dump()
    pools = [space.pool for space, _ in places]
    ips, routes = [], []
    for space, at in places:
        gateway = {"gateway": space.pool.gateway} if space.pool.gateway else {}
        ips.append({"address": f"{space.text(at)}/{space.subnet.prefixlen}", **gateway})
        for route in space.pool.routes:
            gw = route.gw or space.pool.gateway
            routes.append({"dst": route.dst, "gw": gw} if gw else {"dst": route.dst})
    document["ips"] = ips
    if routes:
        document["routes"] = routes
    dns: dict[str, Any] = {}
    for key in ("nameservers", "search", "options"):
        merged = list(dict.fromkeys(value for pool in pools for value in getattr(pool.dns, key)))
        if merged:
            dns[key] = merged
    domain = next((pool.dns.domain for pool in pools if pool.dns.domain), "")
    if domain:
        dns["domain"] = domain
    if dns:
        document["dns"] = dns
    extra = _extra(fixed, places)
    if extra:
        document["extra"] = extra
    return document


def _extra(fixed: Fixed | None, places: Sequence[tuple[AddressSpace, int]]) -> dict[str, Any]:
    """Return VF, VLAN and MAC of the assignment, else of the pools."""
    given: Mapping[str, Any] = fixed.assignment.model_dump(include={"vf", "vlan", "mac"}) if fixed else {}
    vlan = next((space.pool.vlan for space, _ in places if space.pool.vlan is not None), None)
    mac = next((mac for mac in (space.mac(at) for space, at in places) if mac), None)
    found = {"vf": None, "vlan": vlan, "mac": mac}
    found.update({key: value for key, value in given.items() if value is not None})
    return {key: value for key, value in found.items() if value is not None}


@dataclass(frozen=True)
class Claim:
    """The arguments of a release: owner, host, and pod and lease if given."""

    owner: tuple[str, str, str]
    host_ip: str
    pod_id: str | None = None
    lease: str | None = None


class Release:
    """A release in one transaction."""

    def __init__(self, snapshot: Snapshot, claim: Claim, now: int) -> None:
        self.snapshot, self.claim, self.owner, self.now = snapshot, claim, claim.owner, now
        self.keys = RecordKeys(snapshot.generation)
        self.spaces = {space.ident: space for space in pools_of(snapshot.nets)}

    async def __call__(self, tx: Transaction) -> list[Held]:
        """Release the allocation, and return its addresses."""
        own = self.keys.own(*self.owner)
        (root, value), _ = await tx.fetch([ROOT, own])
        require(self.snapshot, root)
        if value is None:
            return []
        document, held = unpack_own(value)
        if not self._means(document):
            return []
        self._permit(document)
        tx.changes[own] = None
        tx.changes[self.keys.host(self.owner[0], document["host_ip"], self.owner[1:])] = None
        records, _ = await tx.fetch([self.keys.shard(it.ident, it.address % SHARDS) for it in held])
        for it, record in zip(held, records, strict=True):
            self._free(tx, it, record, document)
        return held

    def _means(self, document: Mapping[str, Any]) -> bool:
        """Say whether the lease matches: a late release must not free a newer allocation."""
        lease = document.get(ipamd_api.LEASE)  # an imported allocation may lack a lease
        return not self.claim.lease or not lease or lease == self.claim.lease

    def _permit(self, document: Mapping[str, Any]) -> None:
        """Refuse to release an allocation of another host or pod."""
        for key, mine in (("host_ip", self.claim.host_ip), ("pod_id", self.claim.pod_id)):
            if mine and document[key] != mine:
                raise _other(key, mine, document)

    def _free(self, tx: Transaction, it: Held, record: bytes | None, document: Mapping[str, Any]) -> None:
        """Queue an address, or delete its record if it is not usable any more."""
        space = self.spaces.get(it.ident)
        key = self.keys.address(it.ident, it.address)
        usable = space is not None and space.usable(it.address)
        if not usable:
            tx.changes[key] = None
        if space is None or not (usable or it.counted):
            return
        state = Shard(space, record)
        state.used -= it.counted
        if usable:
            grace = self.snapshot.nets[self.owner[0]].grace
            sticky, since = "", 0  # an unreserved address is free at once
            if document["pod_id"] and it.counted and grace:
                sticky = self.keys.sticky(it.ident, document["pod_id"], self.owner[2], it.address)
                since = self.now
                tx.changes[sticky] = b"%d" % since
            tx.changes[key] = pack_freed(since)
            tx.changes[self.keys.free(it.ident, it.address, since)] = sticky.encode()
            state.freed += 1
            state.oldest = since if state.freed == 1 else min(state.oldest, since)
        tx.changes[self.keys.shard(it.ident, it.address % SHARDS)] = state.pack()
