"""The address arithmetic of pools: ranges, shards, MACs."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from sriov_fast.ipamd.model import Pool

SHARDS = 64  # a pool's addresses are split into shards, to reduce conflicts of concurrent clients


def default_range(subnet: IPv4Network | IPv6Network) -> tuple[int, int]:
    """Return the first and the last host address of a subnet."""
    first, last = int(subnet.network_address), int(subnet.broadcast_address)
    if subnet.num_addresses <= 2:  # RFC 3021, RFC 6164: both addresses are hosts
        return first, last
    return (first + 1, last - 1) if subnet.version == 4 else (first + 1, last)


def mac_bits(prefix: str) -> int:
    """Return the number of bits below a MAC prefix."""
    return 48 - 8 * len(prefix.split(":"))


def make_mac(prefix: str, offset: int) -> str:
    """Return the MAC of an address by its offset in the subnet."""
    octets = mac_bits(prefix) // 8
    return ":".join([prefix, *(f"{octet:02x}" for octet in offset.to_bytes(octets, "big"))])


@dataclass(frozen=True)
class AddressSpace:
    """The addresses of a pool as integers; `ident` is the pool's name in the store.

    `epoch` is new after each change of the usable addresses, also after a change back to earlier ones: the
    store does not keep the addresses that were released in between.
    """

    ident: str
    pool: Pool
    reserved: frozenset[int] = frozenset()
    epoch: str = "0"

    @cached_property
    def subnet(self) -> IPv4Network | IPv6Network:
        """Return the subnet."""
        return ip_network(self.pool.subnet)

    @cached_property
    def base(self) -> int:
        """Return the network address."""
        return int(self.subnet.network_address)

    @cached_property
    def version(self) -> int:
        """Return 4 or 6."""
        return self.subnet.version

    @cached_property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """Return the sorted ranges, ends included."""
        given = ((int(ip_address(it.start)), int(ip_address(it.end))) for it in self.pool.ranges)
        return tuple(sorted(given)) or (default_range(self.subnet),)

    @cached_property
    def _ends(self) -> list[int]:
        return [end for _, end in self.ranges]

    @cached_property
    def gateway(self) -> int | None:
        """Return the gateway."""
        return int(ip_address(self.pool.gateway)) if self.pool.gateway else None

    @cached_property
    def total(self) -> int:
        """Return the number of addresses in the ranges, without the gateway."""
        size = sum(end - start + 1 for start, end in self.ranges)
        return size - (self.gateway is not None and self.inside(self.gateway))

    @cached_property
    def reserved_inside(self) -> int:
        """Return the number of addresses in the ranges that fixed assignments reserve."""
        return sum(map(self.inside, self.reserved))

    @cached_property
    def shards(self) -> tuple[int, ...]:
        """Return the shards with at least one address."""
        found: set[int] = set()
        for start, end in self.ranges:
            found.update(address % SHARDS for address in range(start, min(end, start + SHARDS - 1) + 1))
            if len(found) == SHARDS:
                break
        return tuple(sorted(found))

    def same(self, other: AddressSpace) -> bool:
        """Say whether both have the same name in the store and the same usable addresses."""
        mine, its = ((it.ident, it.ranges, it.gateway, it.reserved) for it in (self, other))
        return mine == its

    def inside(self, address: int) -> bool:
        """Say whether an address is in a range."""
        at = bisect_left(self._ends, address)
        return at < len(self.ranges) and self.ranges[at][0] <= address

    def usable(self, address: int) -> bool:
        """Say whether an address may be allocated to any pod."""
        return address != self.gateway and address not in self.reserved and self.inside(address)

    def next(self, shard: int, cursor: int) -> int | None:
        """Return the first usable address of a shard after the cursor."""
        start = cursor + 1
        for at in range(bisect_left(self._ends, start), len(self.ranges)):
            first, end = self.ranges[at]
            address = max(first, start)
            address += (shard - address) % SHARDS
            while address <= end:
                if address != self.gateway and address not in self.reserved:
                    return address
                address += SHARDS
        return None

    def text(self, address: int) -> str:
        """Return an address as text."""
        return str(IPv4Address(address) if self.version == 4 else IPv6Address(address))

    def mac(self, address: int) -> str | None:
        """Return the MAC derived from an address; None without a prefix."""
        prefix = self.pool.mac_prefix
        return make_mac(prefix, address - self.base) if prefix else None


def in_order(spaces: Iterable[AddressSpace]) -> list[AddressSpace]:
    """Return pools by address family and network address."""
    return sorted(spaces, key=_place)


def holder(spaces: Sequence[AddressSpace], text: str) -> AddressSpace | None:
    """Return the pool with an address in its subnet; the pools are of one network, and in order."""
    ip = ip_address(text)
    place: tuple[int, int] = (ip.version, int(ip))
    at = bisect_right(spaces, place, key=_place) - 1
    return spaces[at] if at >= 0 and ip in spaces[at].subnet else None


def _place(space: AddressSpace) -> tuple[int, int]:
    return space.version, space.base
