"""The configuration as arithmetic: which addresses a pool has, who draws from it, what is fixed."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from sriov_fast.ipamd.errors import Forbidden, UnknownHost, UnknownNetwork
from sriov_fast.ipamd.model import Assignment, Config, Pool

LANES = 64  # a pool's addresses are dealt to so many lanes, so that as many clients do not meet in one record


def default_range(subnet: IPv4Network | IPv6Network) -> tuple[int, int]:
    """Return the first and the last address that a host may have in a subnet."""
    first, last = int(subnet.network_address), int(subnet.broadcast_address)
    if subnet.num_addresses <= 2:  # RFC 3021, RFC 6164: both ends of a link are hosts
        return first, last
    return (first + 1, last - 1) if subnet.version == 4 else (first + 1, last)


def mac_bits(prefix: str) -> int:
    """Return how many bits a MAC prefix leaves."""
    return 48 - 8 * len(prefix.split(":"))


def make_mac(prefix: str, offset: int) -> str:
    """Return the MAC of the address with this offset in its subnet."""
    octets = mac_bits(prefix) // 8
    return ":".join([prefix, *(f"{octet:02x}" for octet in offset.to_bytes(octets, "big"))])


@dataclass(frozen=True)
class Shape:
    """A pool as numbers; `ident` names this incarnation of it in the store.

    `epoch` is another one each time that other addresses may be given than before, also if they are the same
    again as once: what was given back in between may be forgotten.
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
        """Return the subnet's own address."""
        return int(self.subnet.network_address)

    @cached_property
    def version(self) -> int:
        """Return 4 or 6."""
        return self.subnet.version

    @cached_property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """Return the ranges in order, ends included."""
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
        """Return how many addresses the ranges have, without the gateway."""
        size = sum(end - start + 1 for start, end in self.ranges)
        return size - (self.gateway is not None and self.inside(self.gateway))

    @cached_property
    def reserved_inside(self) -> int:
        """Return how many fixed assignments take an address of the ranges."""
        return sum(map(self.inside, self.reserved))

    @cached_property
    def lanes(self) -> tuple[int, ...]:
        """Return the lanes that have an address."""
        found: set[int] = set()
        for start, end in self.ranges:
            found.update(address % LANES for address in range(start, min(end, start + LANES - 1) + 1))
            if len(found) == LANES:
                break
        return tuple(sorted(found))

    def same(self, other: Shape) -> bool:
        """Whether the same addresses may be given, of the same incarnation of a pool."""
        mine, its = ((it.ident, it.ranges, it.gateway, it.reserved) for it in (self, other))
        return mine == its

    def inside(self, address: int) -> bool:
        """Whether an address is in a range."""
        at = bisect_left(self._ends, address)
        return at < len(self.ranges) and self.ranges[at][0] <= address

    def usable(self, address: int) -> bool:
        """Whether an address may be given to anyone."""
        return address != self.gateway and address not in self.reserved and self.inside(address)

    def next(self, lane: int, cursor: int) -> int | None:
        """Return the first address of the lane behind the cursor that may be given to anyone."""
        start = cursor + 1
        for at in range(bisect_left(self._ends, start), len(self.ranges)):
            first, end = self.ranges[at]
            address = max(first, start)
            address += (lane - address) % LANES
            while address <= end:
                if address != self.gateway and address not in self.reserved:
                    return address
                address += LANES
        return None

    def text(self, address: int) -> str:
        """Return an address as text."""
        return str(IPv4Address(address) if self.version == 4 else IPv6Address(address))

    def mac(self, address: int) -> str | None:
        """Return the MAC that goes with an address."""
        prefix = self.pool.mac_prefix
        return make_mac(prefix, address - self.base) if prefix else None


@dataclass(frozen=True)
class Fixed:
    """A fixed assignment with the pools that its addresses are in."""

    assignment: Assignment
    places: tuple[tuple[Shape, int], ...]

    def require_host(self, host_ip: str) -> None:
        """Refuse a host that the assignment does not name: the caller's word for the pod is not enough."""
        hosts, host = self.assignment.hosts, ip_address(host_ip)
        if hosts and not any(host in ip_network(each) for each in hosts):
            raise Forbidden(
                f"host_ip: {host_ip!r}: the assignment of pod {self.assignment.pod_id!r} is for hosts"
                f" {', '.join(hosts)}"
            )


@dataclass(frozen=True)
class Net:
    """A network ready to be asked."""

    name: str
    grace: int
    pools: tuple[Shape, ...]
    hosts: Mapping[int, Mapping[int, Mapping[int, tuple[Shape, ...]]]]  # version, prefix length, prefix
    fixed: Mapping[str, Fixed] = field(default_factory=dict)

    def assigned(self, pod_id: str, host_ip: str) -> Fixed | None:
        """Return a pod's assignment; Forbidden where it is for other hosts."""
        found = self.fixed.get(pod_id) if pod_id else None
        if found:
            found.require_host(host_ip)
        return found

    def shapes(self, host_ip: str) -> tuple[Shape, ...]:
        """Return the pools of a host: the longest prefix wins."""
        host = ip_address(host_ip)
        for length, entries in self.hosts.get(host.version, {}).items():
            found = entries.get(int(host) >> (host.max_prefixlen - length))
            if found is not None:
                return found
        raise UnknownHost(f"host_ip: {host_ip!r}: no pool of network {self.name!r} serves it")


@dataclass(frozen=True)
class Book:
    """A revision of the configuration, ready to be asked."""

    root: bytes  # the store's record that says that this is the one in force
    revision: int
    generation: str
    config: Config
    idents: Mapping[str, str]
    nets: Mapping[str, Net]

    def net(self, name: str) -> Net:
        """Return a network by its name."""
        net = self.nets.get(name)
        if net is None:
            raise UnknownNetwork(f"network: {name!r} is not configured")
        return net


def holder(bases: list[int], shapes: list[Shape], address: int) -> Shape | None:
    """Return which of these pools, sorted by `bases`, has the address in its subnet."""
    at = bisect_right(bases, address) - 1
    return shapes[at] if at >= 0 and address <= int(shapes[at].subnet.broadcast_address) else None


def _fixed(
    config: Config, network: str, bare: Iterable[Shape]
) -> list[tuple[Assignment, list[tuple[str, int]]]]:
    """Return the assignments of a network with the pool's name for each address."""
    by_version: dict[int, list[Shape]] = {4: [], 6: []}
    for shape in sorted(bare, key=lambda it: it.base):
        by_version[shape.version].append(shape)
    bases = {version: [shape.base for shape in shapes] for version, shapes in by_version.items()}
    found = []
    for assignment in config.assignments:
        if assignment.network != network:
            continue
        places = []
        for text in assignment.ips:
            address = ip_address(text)
            place = holder(bases[address.version], by_version[address.version], int(address))
            if place is not None:
                places.append((place.pool.name, int(address)))
        found.append((assignment, places))
    return found


def _hosts(
    config: Config, network: str, shapes: Mapping[str, Shape]
) -> dict[int, dict[int, dict[int, tuple[Shape, ...]]]]:
    table: dict[int, dict[int, dict[int, tuple[Shape, ...]]]] = {4: {}, 6: {}}
    for entry in config.hosts:
        if entry.network != network:
            continue
        drawn = tuple(sorted((shapes[name] for name in entry.pools), key=lambda it: it.version))
        for text in entry.hosts:
            cidr = ip_network(text)
            prefix = int(cidr.network_address) >> (cidr.max_prefixlen - cidr.prefixlen)
            table[cidr.version].setdefault(cidr.prefixlen, {})[prefix] = drawn
    return {
        version: {length: lengths[length] for length in sorted(lengths, reverse=True)}
        for version, lengths in table.items()
    }


def nets(
    config: Config, idents: Mapping[str, str], epochs: Mapping[str, str] | None = None
) -> dict[str, Net]:
    """Return the networks of a valid configuration, ready to be asked."""
    epochs = epochs or {}
    made = {}
    for network in config.networks:
        bare = [Shape(idents[it.name], it) for it in config.pools if it.network == network.name]
        fixed = _fixed(config, network.name, bare)
        reserved: dict[str, set[int]] = {}
        for _, places in fixed:
            for name, address in places:
                reserved.setdefault(name, set()).add(address)
        shapes = {
            name: Shape(it.ident, it.pool, frozenset(reserved.get(name, ())), epochs.get(name, "0"))
            for name, it in ((it.pool.name, it) for it in bare)
        }
        made[network.name] = Net(
            network.name,
            network.grace,
            tuple(shapes.values()),
            _hosts(config, network.name, shapes),
            {
                assignment.pod_id: Fixed(assignment, tuple((shapes[name], at) for name, at in places))
                for assignment, places in fixed
            },
        )
    return made
