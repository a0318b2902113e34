"""A revision of the configuration, indexed for requests by network, host and pod."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network

from sriov_fast.ipamd.config import Config
from sriov_fast.ipamd.errors import Forbidden, UnknownHost, UnknownNetwork
from sriov_fast.ipamd.model import Assignment, Network
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
    fixed: Mapping[str, Fixed]  # by pod

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


def _places(assignment: Assignment, spaces: Sequence[AddressSpace]) -> tuple[tuple[AddressSpace, int], ...]:
    """Return the addresses of an assignment with their pools; the pools are in order."""
    found = ((holder(spaces, text), int(ip_address(text))) for text in assignment.ips)
    return tuple((space, address) for space, address in found if space is not None)


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
    return {it.name: _index(config, it, idents, epochs or {}) for it in config.networks}


def _index(
    config: Config, network: Network, idents: Mapping[str, str], epochs: Mapping[str, str]
) -> NetworkIndex:
    assignments = [it for it in config.assignments if it.network == network.name]
    bare = [AddressSpace(idents[it.name], it) for it in config.pools if it.network == network.name]
    ordered = in_order(bare)
    reserved: defaultdict[str, set[int]] = defaultdict(set)
    for assignment in assignments:
        for space, address in _places(assignment, ordered):
            reserved[space.ident].add(address)
    spaces = {
        it.pool.name: replace(it, reserved=frozenset(reserved[it.ident]), epoch=epochs.get(it.pool.name, "0"))
        for it in bare
    }
    ordered = in_order(spaces.values())
    fixed = {it.pod_id: Fixed(it, _places(it, ordered)) for it in assignments}
    hosts = _hosts(config, network.name, spaces)
    return NetworkIndex(network.name, network.grace, tuple(spaces.values()), hosts, fixed)
