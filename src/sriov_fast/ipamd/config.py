"""The configuration of the address service, checked as a whole; each fault names the key and the value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import pairwise
from typing import Self

from pydantic import model_validator

from sriov_fast.ipamd.model import Assignment, Document, Hosts, Network, Pool, Some
from sriov_fast.ipamd.pools import AddressSpace, default_range, holder, in_order, mac_bits

MOST = 20  # faults in one error


class Config(Document):
    """The whole configuration, checked across its items."""

    networks: Some[Network] = ()
    pools: Some[Pool] = ()
    hosts: Some[Hosts] = ()
    assignments: Some[Assignment] = ()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        found = _faults(self)
        if found:
            raise ValueError("; ".join(found))
        return self


def _faults(config: Config) -> list[str]:
    """Return the contradictions; each group of checks runs only if the groups before found none."""
    for check in (_names, _each_pool, _pools_together, _hosts, _assignments):
        found = [fault for fault, _ in zip(check(config), range(MOST), strict=False)]
        if found:
            return found
    return []


def _names(config: Config) -> Iterator[str]:
    yield from _twice("networks", (it.name for it in config.networks))
    yield from _twice("pools", (it.name for it in config.pools))
    networks = {it.name for it in config.networks}
    for key in ("pools", "hosts", "assignments"):
        for at, entry in enumerate(getattr(config, key)):
            if entry.network not in networks:
                yield f"{key}[{at}].network: {entry.network!r} is not in networks"


def _twice(key: str, names: Iterable[str]) -> Iterator[str]:
    for name, count in Counter(names).items():
        if count > 1:
            yield f"{key}: {name!r} is there {count} times"


def _each_pool(config: Config) -> Iterator[str]:
    checks: tuple[Callable[[Pool, IPv4Network | IPv6Network], Iterator[str]], ...]
    checks = (_ranges, _gateway, _routes, _mac_prefix)
    for at, pool in enumerate(config.pools):
        for check in checks:
            found = [f"pools[{at}] {pool.name!r}: {fault}" for fault in check(pool, ip_network(pool.subnet))]
            yield from found
            if found:
                break


def _ranges(pool: Pool, subnet: IPv4Network | IPv6Network) -> Iterator[str]:
    first, last = default_range(subnet)
    taken: list[tuple[int, int, str]] = []
    for at, it in enumerate(pool.ranges):
        start, end = ip_address(it.start), ip_address(it.end)
        outside = [text for text, ip in ((it.start, start), (it.end, end)) if ip not in subnet]
        if outside:
            yield f"ranges[{at}]: {outside[0]!r} is outside subnet {pool.subnet!r}"
        elif int(start) > int(end):
            yield f"ranges[{at}]: start {it.start!r} is behind end {it.end!r}"
        elif int(start) < first or int(end) > last:
            bad = it.start if int(start) < first else it.end
            yield f"ranges[{at}]: {bad!r} is the network's own or its broadcast address"
        else:
            taken.append((int(start), int(end), f"{it.start}-{it.end}"))
    taken.sort()
    for before, behind in pairwise(taken):
        if behind[0] <= before[1]:
            yield f"ranges: {before[2]!r} and {behind[2]!r} overlap"


def _gateway(pool: Pool, subnet: IPv4Network | IPv6Network) -> Iterator[str]:
    if pool.gateway is None:
        return
    gateway = ip_address(pool.gateway)
    if gateway.version == 6 and gateway.is_link_local and subnet.version == 6:
        return
    if gateway not in subnet:
        yield f"gateway: {pool.gateway!r} is outside subnet {pool.subnet!r}"


def _routes(pool: Pool, subnet: IPv4Network | IPv6Network) -> Iterator[str]:
    for at, route in enumerate(pool.routes):
        if ip_network(route.dst).version != subnet.version:
            yield f"routes[{at}].dst: {route.dst!r} is of another family than subnet {pool.subnet!r}"
        elif route.gw is not None and ip_address(route.gw).version != subnet.version:
            yield f"routes[{at}].gw: {route.gw!r} is of another family than dst {route.dst!r}"


def _mac_prefix(pool: Pool, _: IPv4Network | IPv6Network) -> Iterator[str]:
    space = AddressSpace("", pool)
    if pool.mac_prefix is None:
        return
    bits, last = mac_bits(pool.mac_prefix), space.ranges[-1][1]
    if (last - space.base) >> bits:
        yield (
            f"mac_prefix: {pool.mac_prefix!r} leaves {bits} bits, too few for a MAC for each address"
            f" up to {space.text(last)}: give ranges that end earlier, or a shorter prefix"
        )


def _pools_together(config: Config) -> Iterator[str]:
    last: dict[tuple[str, int], AddressSpace] = {}
    for space in in_order(AddressSpace("", it) for it in config.pools):
        key = (space.pool.network, space.version)
        before = last.get(key)
        if before is not None and before.subnet.overlaps(space.subnet):
            yield (
                f"pools: subnet {space.pool.subnet!r} of {space.pool.name!r} overlaps {before.pool.subnet!r}"
                f" of {before.pool.name!r} in network {space.pool.network!r}"
            )
        last[key] = space
    yield from _prefixes_together(config)


def _prefixes_together(config: Config) -> Iterator[str]:
    seen: dict[tuple[str, int], list[tuple[str, str]]] = {}
    for pool in config.pools:
        if pool.mac_prefix is None:
            continue
        others = seen.setdefault((pool.network, pool.vlan or 0), [])
        for prefix, name in others:
            if pool.mac_prefix.startswith(prefix) or prefix.startswith(pool.mac_prefix):
                yield (
                    f"pools: mac_prefix {pool.mac_prefix!r} of {pool.name!r} overlaps {prefix!r} of {name!r}"
                    f" in network {pool.network!r}: the same MAC would be given twice"
                )
        others.append((pool.mac_prefix, pool.name))


def _hosts(config: Config) -> Iterator[str]:
    pools = {it.name: it for it in config.pools}
    seen: dict[tuple[str, str], int] = {}
    for at, entry in enumerate(config.hosts):
        yield from (f"hosts[{at}]: {fault}" for fault in _drawn(entry, pools))
        for text in entry.hosts:
            before = seen.setdefault((entry.network, text), at)
            if before != at or entry.hosts.count(text) > 1:
                where = f"hosts[{before}] too" if before != at else "the same entry twice"
                yield f"hosts[{at}]: {text!r} is in {where}, network {entry.network!r}"


def _drawn(entry: Hosts, pools: dict[str, Pool]) -> Iterator[str]:
    """Yield the faults of the pools of a host."""
    families: dict[int, str] = {}
    if not entry.hosts or not entry.pools:
        yield f"{'pools' if entry.hosts else 'hosts'}: is empty"
    for name in entry.pools:
        pool = pools.get(name)
        if pool is None:
            yield f"pools: {name!r} is not in pools"
        elif pool.network != entry.network:
            yield f"pools: {name!r} is of network {pool.network!r}, not {entry.network!r}"
        else:
            version = ip_network(pool.subnet).version
            other = families.setdefault(version, name)
            if other != name or entry.pools.count(name) > 1:
                yield f"pools: {other!r} and {name!r} are both IPv{version}: a host draws from one"
    vlans = {pools[name].vlan: name for name in families.values() if pools[name].vlan is not None}
    if len(vlans) > 1:
        given = ", ".join(f"{vlan} of {name!r}" for vlan, name in vlans.items())
        yield f"pools: have different VLANs, and a pod has one: {given}"


def _assignments(config: Config) -> Iterator[str]:
    spaces: dict[str, list[AddressSpace]] = {network.name: [] for network in config.networks}
    for space in in_order(AddressSpace("", it) for it in config.pools):
        spaces[space.pool.network].append(space)
    seen: dict[tuple[str, str, str], tuple[int, str]] = {}
    for at, it in enumerate(config.assignments):
        for key, value in (("pod_id", it.pod_id), *(("ips", ip) for ip in it.ips), ("mac", it.mac)):
            if value is None:
                continue
            before = seen.setdefault((it.network, key, value), (at, it.pod_id))
            if before[0] != at or it.ips.count(value) > 1:
                yield (
                    f"assignments[{at}].{key}: {value!r} of pod {it.pod_id!r} is assigned to pod"
                    f" {before[1]!r} too (assignments[{before[0]}])"
                )
        yield from (
            f"assignments[{at}] {it.pod_id!r}: {fault}" for fault in _assigned(it, spaces[it.network])
        )


def _assigned(it: Assignment, spaces: list[AddressSpace]) -> Iterator[str]:
    """Yield the faults of one assignment; the pools are of its network."""
    if not it.ips and it.mac is None and it.vlan is None and it.vf is None:
        yield "assigns nothing: give ips, mac, vlan or vf"
    versions = [ip_address(text).version for text in it.ips]
    if len(set(versions)) < len(versions):
        yield f"ips: {list(it.ips)} are two of one family"
    derived = set()
    for text in it.ips:
        address = int(ip_address(text))
        space = holder(spaces, text)
        if space is None:
            yield f"ips: {text!r} is in no subnet of network {it.network!r}"
            continue
        yield from _placed(it, text, space)
        if space.pool.mac_prefix and not (address - space.base) >> mac_bits(space.pool.mac_prefix):
            derived.add(space.mac(address))
    yield from _own_mac(it, derived, spaces)


def _placed(it: Assignment, text: str, space: AddressSpace) -> Iterator[str]:
    """Yield the faults of an assigned address in its pool."""
    address, pool = int(ip_address(text)), space.pool
    first, last = default_range(space.subnet)
    if address == space.gateway:
        yield f"ips: {text!r} is the gateway of pool {pool.name!r}"
    elif not first <= address <= last:
        yield f"ips: {text!r} is the own or the broadcast address of subnet {pool.subnet!r}"
    elif pool.mac_prefix and it.mac is None and (address - space.base) >> mac_bits(pool.mac_prefix):
        yield f"ips: {text!r} has no MAC of its own under mac_prefix {pool.mac_prefix!r}: give mac"


def _own_mac(it: Assignment, derived: set[str | None], spaces: list[AddressSpace]) -> Iterator[str]:
    """Yield a fault if a pool may derive an assigned MAC for another address."""
    if it.mac is None or it.mac in derived:
        return
    for space in spaces:
        if space.pool.mac_prefix and it.mac.startswith(space.pool.mac_prefix):
            yield (
                f"mac: {it.mac!r} is under mac_prefix {space.pool.mac_prefix!r} of pool"
                f" {space.pool.name!r}, which may give it to another pod"
            )
