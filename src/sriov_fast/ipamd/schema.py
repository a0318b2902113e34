"""The records in the store: their keys and contents.

- `own`: the allocation of an owner
- `addr`: the owner of an address, or the time of its release
- `free`: the queue of a shard's free addresses, by the time of their release
- `lane`: the counters of a shard, and the cursor of its first pass over its addresses
- `sticky`: the addresses reserved for a pod
- `host`: the owners of a host with their leases
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import orjson

from sriov_fast.ipamd.pools import SHARDS, AddressSpace
from sriov_fast.ipamd.store import Rows, Span, prefix_end

ROOT = "root"  # names the active configuration and the active generation of records
END = 1 << 128  # a cursor after all addresses


def pack(value: object) -> bytes:
    """Return a record's bytes."""
    # A copy: orjson's bytes keep a buffer of 4 KB, and an import has millions of records.
    return bytes(memoryview(orjson.dumps(value)))


def unpack(value: bytes) -> Any:
    """Return the contents of a record."""
    return orjson.loads(value)


def escape(text: str) -> str:
    """Return text escaped as one part of a key."""
    return quote(text, safe="") or "%"


def unescape(part: str) -> str:
    """Return the text of a part of a key."""
    return "" if part == "%" else unquote(part)


NO_ROOT = pack({"revision": 0, "generation": "0", "document": "", "parts": 0})  # of an empty store


class RecordKeys(NamedTuple):
    """The keys of one generation of records."""

    generation: str

    def kind(self, kind: str, ident: str = "") -> tuple[str, str]:
        """Return the span (first key, first key after) of a kind of records, of one pool if given."""
        prefix = f"{self.generation}/{kind}/{ident}/" if ident else f"{self.generation}/{kind}/"
        return prefix, prefix_end(prefix)

    def own(self, network: str, container_id: str, ifname: str) -> str:
        """Return the key of an owner's allocation."""
        return f"{self.generation}/own/{escape(network)}/{escape(container_id)}/{escape(ifname)}"

    def host(self, network: str, host_ip: str, owner: tuple[str, str] | None = None) -> str:
        """Return the key of an owner in the list of a host, or the prefix of the list."""
        host = ip_address(host_ip)
        prefix = f"{self.generation}/host/{escape(network)}/{host.version}-{int(host):x}/"
        return prefix if owner is None else f"{prefix}{escape(owner[0])}/{escape(owner[1])}"

    def shard(self, ident: str, shard: int) -> str:
        """Return the key of a shard's counters."""
        return f"{self.generation}/lane/{ident}/{shard:02x}"

    def address(self, ident: str, address: int) -> str:
        """Return the key of an address."""
        return f"{self.generation}/addr/{ident}/{address % SHARDS:02x}/{address:032x}"

    def addresses(self, ident: str, start: int, most: int) -> Span:
        """Return the span of a shard's addresses from `start` on."""
        end = prefix_end(f"{self.generation}/addr/{ident}/{start % SHARDS:02x}/")
        return self.address(ident, start), end, most

    def free(self, ident: str, address: int, released: int) -> str:
        """Return the key of a free address in its shard's queue."""
        return f"{self.generation}/free/{ident}/{address % SHARDS:02x}/{released:015d}/{address:032x}"

    def queue(self, ident: str, shard: int, most: int) -> Span:
        """Return the span of the earliest released addresses of a shard."""
        prefix = f"{self.generation}/free/{ident}/{shard:02x}/"
        return prefix, prefix_end(prefix), most

    def sticky(self, ident: str, pod_id: str, ifname: str, address: int | None = None) -> str:
        """Return the key of an address reserved for a pod's interface, or the prefix of all of them."""
        prefix = f"{self.generation}/sticky/{ident}/{escape(pod_id)}/{escape(ifname)}/"
        return prefix if address is None else f"{prefix}{address:032x}"


class Free(NamedTuple):
    """An entry of a shard's queue of free addresses; times are ms since 1970."""

    key: str
    released: int
    address: int
    sticky: str  # the key of the reservation for its last pod, "" for none

    @classmethod
    def read(cls, rows: Rows) -> list[Free]:
        """Return the entries of a span."""
        found = []
        for key, value in rows:
            _, released, address = key.rsplit("/", 2)
            found.append(cls(key, int(released), int(address, 16), value.decode()))
        return found


class Shard:
    """The counters of a shard.

    `cursor` is the last address of the pass over new addresses, `epoch` the epoch of the pool at its start.
    """

    __slots__ = ("cursor", "epoch", "freed", "oldest", "used")

    def __init__(self, space: AddressSpace, value: bytes | None) -> None:
        if value is None:
            self.cursor, self.epoch, self.used, self.freed, self.oldest = -1, space.epoch, 0, 0, 0
        else:
            cursor, self.epoch, self.used, self.freed, self.oldest = unpack(value)
            self.cursor = int(cursor, 16)

    def pack(self) -> bytes:
        """Return the record."""
        return pack([f"{self.cursor:x}", self.epoch, self.used, self.freed, self.oldest])

    def fresh(self, space: AddressSpace, number: int, expired: int) -> bool:
        """Say whether the shard may have an unreserved address: a new one, or one free since `expired`."""
        if self.epoch != space.epoch or (self.freed and self.oldest <= expired):
            return True
        return self.cursor < END and space.next(number, self.cursor) is not None


def shards(space: AddressSpace, rows: Rows) -> dict[int, Shard]:
    """Return the state of all shards with an address."""
    records = {int(key.rsplit("/", 1)[1], 16): value for key, value in rows}
    return {number: Shard(space, records.get(number)) for number in {*space.shards, *records}}


class Held(NamedTuple):
    """An allocated address; `counted` in the use of its shard unless a fixed assignment reserves it."""

    ident: str
    address: int
    counted: bool


def pack_own(document: dict[str, Any], held: Sequence[Held]) -> bytes:
    """Return the record of an owner's allocation."""
    return pack({"allocation": document, "held": [[it.ident, f"{it.address:x}", it.counted] for it in held]})


def unpack_own(value: bytes) -> tuple[dict[str, Any], list[Held]]:
    """Return the allocation of a record, and its addresses."""
    record = unpack(value)
    return record["allocation"], [Held(ident, int(at, 16), counted) for ident, at, counted in record["held"]]


def pack_owner(network: str, container_id: str, ifname: str, pod_id: str) -> bytes:
    """Return the record of an allocated address."""
    return pack({"owner": [network, container_id, ifname], "pod_id": pod_id})


def pack_freed(released: int) -> bytes:
    """Return the record of a released address."""
    return pack({"released": released})
