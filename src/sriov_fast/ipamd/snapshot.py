"""A revision of the configuration, indexed for requests by network, host and pod."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from sriov_fast.ipamd.config import Config
from sriov_fast.ipamd.errors import Forbidden, UnknownHost, UnknownNetwork
from sriov_fast.ipamd.model import Assignment
from sriov_fast.ipamd.pools import AddressSpace, holder, in_order


@dataclass(frozen=True)
class Fixed:
    """A fixed assignment with the pools of its addresses."""

    assignment: Assignment
    places: tuple[tuple[AddressSpace, int], ...]

    def require_host(self, host_ip: str) -> None:
        """Refuse a host that the assignment does not name."""
        hosts, host = self.assignment.hosts, ip_address(host_ip)
        if hosts and not any(host in ip_network(each) for each in hosts):
            raise Forbidden(
                f"host_ip: {host_ip!r}: the assignment of pod {self.assignment.pod_id!r} is for hosts"
                f" {', '.join(hosts)}"
            )


@dataclass(frozen=True)
class NetworkIndex:
    """A network, indexed by host and pod."""

    name: str
    grace: int
    pools: tuple[AddressSpace, ...]
    hosts: Mapping[
        int, Mapping[int, Mapping[int, tuple[AddressSpace, ...]]]
    ]  # version, prefix length, prefix
    fixed: Mapping[str, Fixed] = field(default_factory=dict)

    def assigned(self, pod_id: str, host_ip: str) -> Fixed | None:
        """Return a pod's assignment; raise `Forbidden` if it is for other hosts."""
        found = self.fixed.get(pod_id) if pod_id else None
        if found:
            found.require_host(host_ip)
        return found

    def spaces(self, host_ip: str) -> tuple[AddressSpace, ...]:
        """Return the pools of a host by the longest prefix."""
        host = ip_address(host_ip)
        for length, entries in self.hosts.get(host.version, {}).items():
            found = entries.get(int(host) >> (host.max_prefixlen - length))
            if found is not None:
                return found
        raise UnknownHost(f"host_ip: {host_ip!r}: no pool of network {self.name!r} serves it")


@dataclass(frozen=True)
class Snapshot:
    """A revision of the configuration, indexed by network."""

    root: bytes  # the root record while this revision is active
    revision: int
    generation: str
    document: str  # the name of the configuration in the store
    config: Config
    idents: Mapping[str, str]
    nets: Mapping[str, NetworkIndex]

    def net(self, name: str) -> NetworkIndex:
        """Return a network by its name."""
        net = self.nets.get(name)
        if net is None:
            raise UnknownNetwork(f"network: {name!r} is not configured")
        return net


def pools_of(found: Mapping[str, NetworkIndex]) -> list[AddressSpace]:
    """Return the pools of all networks."""
    return [space for net in found.values() for space in net.pools]


def _fixed(
    config: Config, network: str, bare: Iterable[AddressSpace]
) -> list[tuple[Assignment, list[tuple[str, int]]]]:
    """Return the assignments of a network, each with the pool names of its addresses."""
    spaces = in_order(bare)
    found = []
    for assignment in config.assignments:
        if assignment.network != network:
            continue
        held = ((holder(spaces, text), int(ip_address(text))) for text in assignment.ips)
        places = [(space.pool.name, address) for space, address in held if space is not None]
        found.append((assignment, places))
    return found


def _hosts(
    config: Config, network: str, spaces: Mapping[str, AddressSpace]
) -> dict[int, dict[int, dict[int, tuple[AddressSpace, ...]]]]:
    table: dict[int, dict[int, dict[int, tuple[AddressSpace, ...]]]] = {4: {}, 6: {}}
    for entry in config.hosts:
        if entry.network != network:
            continue
        drawn = tuple(sorted((spaces[name] for name in entry.pools), key=lambda it: it.version))
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
) -> dict[str, NetworkIndex]:
    """Return the indexed networks of a valid configuration."""
    epochs = epochs or {}
    made = {}
    for network in config.networks:
        bare = [AddressSpace(idents[it.name], it) for it in config.pools if it.network == network.name]
        fixed = _fixed(config, network.name, bare)
        reserved: dict[str, set[int]] = {}
        for _, places in fixed:
            for name, address in places:
                reserved.setdefault(name, set()).add(address)
        spaces = {
            name: AddressSpace(it.ident, it.pool, frozenset(reserved.get(name, ())), epochs.get(name, "0"))
            for name, it in ((it.pool.name, it) for it in bare)
        }
        made[network.name] = NetworkIndex(
            network.name,
            network.grace,
            tuple(spaces.values()),
            _hosts(config, network.name, spaces),
            {
                assignment.pod_id: Fixed(assignment, tuple((spaces[name], at) for name, at in places))
                for assignment, places in fixed
            },
        )
    return made
