"""A revision of the configuration, indexed for requests by network, host and pod."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from sriov_fast.ipamd.config import Config
from sriov_fast.ipamd.errors import Forbidden, UnknownHost, UnknownNetwork
from sriov_fast.ipamd.model import Assignment
from sriov_fast.ipamd.pools import Shape, holder


@dataclass(frozen=True)
class Fixed:
    """A fixed assignment with the pools of its addresses."""

    assignment: Assignment
    places: tuple[tuple[Shape, int], ...]

    def require_host(self, host_ip: str) -> None:
        """Refuse a host that the assignment does not name."""
        hosts, host = self.assignment.hosts, ip_address(host_ip)
        if hosts and not any(host in ip_network(each) for each in hosts):
            raise Forbidden(
                f"host_ip: {host_ip!r}: the assignment of pod {self.assignment.pod_id!r} is for hosts"
                f" {', '.join(hosts)}"
            )


@dataclass(frozen=True)
class Net:
    """A network, indexed by host and pod."""

    name: str
    grace: int
    pools: tuple[Shape, ...]
    hosts: Mapping[int, Mapping[int, Mapping[int, tuple[Shape, ...]]]]  # version, prefix length, prefix
    fixed: Mapping[str, Fixed] = field(default_factory=dict)

    def assigned(self, pod_id: str, host_ip: str) -> Fixed | None:
        """Return a pod's assignment; raise `Forbidden` if it is for other hosts."""
        found = self.fixed.get(pod_id) if pod_id else None
        if found:
            found.require_host(host_ip)
        return found

    def shapes(self, host_ip: str) -> tuple[Shape, ...]:
        """Return the pools of a host by the longest prefix."""
        host = ip_address(host_ip)
        for length, entries in self.hosts.get(host.version, {}).items():
            found = entries.get(int(host) >> (host.max_prefixlen - length))
            if found is not None:
                return found
        raise UnknownHost(f"host_ip: {host_ip!r}: no pool of network {self.name!r} serves it")


@dataclass(frozen=True)
class Book:
    """A revision of the configuration, indexed by network."""

    root: bytes  # the root record while this revision is active
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


def _fixed(
    config: Config, network: str, bare: Iterable[Shape]
) -> list[tuple[Assignment, list[tuple[str, int]]]]:
    """Return the assignments of a network, each with the pool names of its addresses."""
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
    """Return the indexed networks of a valid configuration."""
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
