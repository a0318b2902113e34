"""Validation of the address service's configurations and requests, and its error messages."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ipamd_kit import config, made

from sriov_fast.ipamd.config import Config
from sriov_fast.ipamd.errors import Invalid
from sriov_fast.ipamd.model import Allocation, Ask, parse
from sriov_fast.ipamd.pools import SHARDS, AddressSpace
from sriov_fast.ipamd.snapshot import nets

NETWORK = {"name": "n"}
A = {"name": "a", "network": "n", "subnet": "10.1.0.0/24"}
B = {"name": "b", "network": "n", "subnet": "10.2.0.0/24"}
SIX = {"name": "six", "network": "n", "subnet": "fd00::/64"}
MACS = {"mac_prefix": "02:5a:00"}


def pools(*given: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"networks": [NETWORK], "pools": list(given), **more}


def ranges(*bounds: str) -> list[dict[str, str]]:
    """Return ranges from pairs of addresses."""
    return [{"start": start, "end": end} for start, end in zip(bounds[::2], bounds[1::2], strict=True)]


def ranged(*bounds: str, **pool: str) -> dict[str, Any]:
    return pools({**A, "ranges": ranges(*bounds), **pool})


def hosts(*given: dict[str, Any]) -> dict[str, Any]:
    entries = [{"network": "n", "hosts": ["10.0.0.0/8"], "pools": ["a"], **it} for it in given]
    return pools(
        A, B, {**SIX, "vlan": 5}, {**A, "name": "v", "subnet": "10.3.0.0/24", "vlan": 4}, hosts=entries
    )


def fixed(*given: dict[str, Any], **more: Any) -> dict[str, Any]:
    pool = {**A, "gateway": "10.1.0.1", **more}
    entries = [{"network": "n", "pod_id": f"ns/{at}", **it} for at, it in enumerate(given)]
    return pools(pool, SIX, assignments=entries)


REFUSED = {
    "network twice": ({"networks": [NETWORK, NETWORK]}, "networks: 'n' is there 2 times"),
    "network's name": ({"networks": [{"name": "a/b"}]}, "networks[0].name: 'a/b'"),
    "grace": ({"networks": [{"name": "n", "grace": -1}]}, "networks[0].grace: -1"),
    "unknown key": ({"networks": [{"name": "n", "gracious": 1}]}, "networks[0].gracious: 1"),
    "missing key": ({"networks": [{}]}, "networks[0].name: is missing"),
    "pool twice": (pools(A, A), "pools: 'a' is there 2 times"),
    "pool's network": (pools({**A, "network": "m"}), "pools[0].network: 'm' is not in networks"),
    "subnet": (pools({**A, "subnet": "10.1.0.1/24"}), "pools[0].subnet: '10.1.0.1/24' is no network"),
    "overlap": (
        pools(B, {**A, "subnet": "10.0.0.0/8"}),
        "subnet '10.2.0.0/24' of 'b' overlaps '10.0.0.0/8' of 'a'",
    ),
    "overlap in IPv6": (pools(SIX, {**SIX, "name": "s"}), "'fd00::/64' of 's' overlaps 'fd00::/64' of 'six'"),
    "range outside": (
        ranged("10.1.0.9", "10.1.1.9"),
        "pools[0] 'a': ranges[0]: '10.1.1.9' is outside subnet '10.1.0.0/24'",
    ),
    "range backwards": (ranged("10.1.0.9", "10.1.0.8"), "start '10.1.0.9' is behind end '10.1.0.8'"),
    "range of a family": (ranged("fd00::1", "10.1.0.8"), "'fd00::1' is outside subnet '10.1.0.0/24'"),
    "range with the network's address": (ranged("10.1.0.0", "10.1.0.8"), "'10.1.0.0' is the network's own"),
    "range with the broadcast address": (
        ranged("10.1.0.8", "10.1.0.255"),
        "'10.1.0.255' is the network's own or its broadcast",
    ),
    "ranges overlap": (
        ranged("10.1.0.8", "10.1.0.9", "10.1.0.2", "10.1.0.8"),
        "ranges: '10.1.0.2-10.1.0.8' and '10.1.0.8-10.1.0.9' overlap",
    ),
    "gateway outside": (
        pools({**A, "gateway": "10.2.0.1"}),
        "gateway: '10.2.0.1' is outside subnet '10.1.0.0/24'",
    ),
    "route's family": (
        pools({**A, "routes": [{"dst": "::/0"}]}),
        "routes[0].dst: '::/0' is of another family",
    ),
    "route's gw": (
        pools({**A, "routes": [{"dst": "0.0.0.0/0", "gw": "fd00::1"}]}),
        "routes[0].gw: 'fd00::1'",
    ),
    "vlan": (pools({**A, "vlan": 4095}), "pools[0].vlan: 4095"),
    "vlan as text": (pools({**A, "vlan": "100"}), "pools[0].vlan: '100'"),
    "DNS": (pools({**A, "dns": {"nameservers": ["x"]}}), "pools[0].dns.nameservers[0]: 'x' is no IP address"),
    "MAC prefix of vendors": (pools({**A, "mac_prefix": "00:5a:00"}), "'00:5a:00' is no prefix of locally"),
    "MAC prefix of groups": (pools({**A, "mac_prefix": "03:5a:00"}), "'03:5a:00' is no prefix of locally"),
    "MAC prefix too long": (pools({**A, "mac_prefix": "02:5a:00:00:00:00"}), "mac_prefix"),
    "MAC prefix too narrow": (pools({**SIX, **MACS}), "mac_prefix: '02:5a:00' leaves 24 bits, too few"),
    "MAC prefix twice": (
        pools({**A, **MACS}, {**B, "mac_prefix": "02:5a"}),
        "mac_prefix '02:5a' of 'b' overlaps '02:5a:00' of 'a'",
    ),
    "host's network": (pools(A, hosts=[{"network": "m", "hosts": [], "pools": []}]), "hosts[0].network: 'm'"),
    "host": (hosts({"hosts": ["node1"]}), "hosts[0].hosts[0]: 'node1' is no"),
    "host with bits": (hosts({"hosts": ["10.0.0.1/8"]}), "hosts[0].hosts[0]: '10.0.0.1/8' is no network"),
    "host without pools": (hosts({"pools": []}), "hosts[0]: pools: is empty"),
    "pools without host": (hosts({"hosts": []}), "hosts[0]: hosts: is empty"),
    "host's pool": (hosts({"pools": ["z"]}), "hosts[0]: pools: 'z' is not in pools"),
    "two of a family": (hosts({"pools": ["a", "b"]}), "'a' and 'b' are both IPv4"),
    "a pool twice": (hosts({"pools": ["a", "a"]}), "'a' and 'a' are both IPv4"),
    "two VLANs": (hosts({"pools": ["v", "six"]}), "different VLANs, and a pod has one: 4 of 'v', 5 of 'six'"),
    "prefix twice": (hosts({}, {}), "hosts[1]: '10.0.0.0/8' is in hosts[0] too"),
    "prefix twice in one": (
        hosts({"hosts": ["10.0.0.1", "10.0.0.1/32"]}),
        "'10.0.0.1/32' is in the same entry twice",
    ),
    "assignment's network": (
        pools(A, assignments=[{"network": "m", "pod_id": "p", "vf": 0}]),
        "assignments[0].network: 'm'",
    ),
    "assignment of nothing": (fixed({}), "assignments[0] 'ns/0': assigns nothing"),
    "pod twice": (fixed({"vf": 1}, {"vf": 2, "pod_id": "ns/0"}), "assignments[1].pod_id: 'ns/0'"),
    "address twice": (
        fixed({"ips": ["10.1.0.5"]}, {"ips": ["10.1.0.5"]}),
        "assignments[1].ips: '10.1.0.5' of pod 'ns/1' is assigned to pod 'ns/0' too",
    ),
    "MAC twice": (
        fixed({"mac": "AA:00:00:00:00:01"}, {"mac": "aa:00:00:00:00:01"}),
        "assignments[1].mac: 'aa:00:00:00:00:01' of pod 'ns/1' is assigned to pod 'ns/0' too",
    ),
    "address outside": (fixed({"ips": ["10.9.0.5"]}), "'10.9.0.5' is in no subnet of network 'n'"),
    "two of a family assigned": (fixed({"ips": ["10.1.0.5", "10.1.0.6"]}), "two of one family"),
    "gateway assigned": (fixed({"ips": ["10.1.0.1"]}), "'10.1.0.1' is the gateway of pool 'a'"),
    "broadcast assigned": (fixed({"ips": ["10.1.0.255"]}), "'10.1.0.255' is the own or the broadcast"),
    "group MAC": (fixed({"mac": "01:00:5e:00:00:01"}), "'01:00:5e:00:00:01' is a multicast MAC"),
    "no MAC": (fixed({"mac": "nope"}), "assignments[0].mac: 'nope' is no MAC"),
    "MAC of another address": (
        fixed({"mac": "02:5a:00:00:00:09"}, **MACS),
        "is under mac_prefix '02:5a:00' of pool 'a'",
    ),
    "VF": (fixed({"vf": -1}), "assignments[0].vf: -1"),
}


@pytest.mark.parametrize(("document", "words"), REFUSED.values(), ids=REFUSED)
def test_refusals_name_key_and_value(document: dict[str, Any], words: str) -> None:
    with pytest.raises(Invalid) as caught:
        made(document)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


ACCEPTED = {
    "nothing": {},
    "the same subnet in two networks": {
        "networks": [{"name": "n"}, {"name": "m"}],
        "pools": [A, {**A, "name": "b", "network": "m"}],
    },
    "a gateway in a range": ranged("10.1.0.5", "10.1.0.6", gateway="10.1.0.5"),
    "a link-local gateway": pools({**SIX, "gateway": "fe80::1"}),
    "the same MACs in two VLANs": pools({**A, **MACS, "vlan": 1}, {**B, **MACS, "vlan": 2}),
    "MACs for a part of an IPv6 subnet": ranged("fd00::1", "fd00::ff:ffff", **SIX, **MACS),
    "an assigned address outside the ranges": fixed(
        {"ips": ["10.1.0.9"]}, ranges=ranges("10.1.0.10", "10.1.0.11")
    ),
    "the MAC that the address would get anyway": fixed(
        {"ips": ["10.1.0.9"], "mac": "02:5a:00:00:00:09"}, **MACS
    ),
    "both families": hosts({"pools": ["six", "a"]}),
}


@pytest.mark.parametrize("document", ACCEPTED.values(), ids=ACCEPTED)
def test_what_is_right_is_taken_and_comes_back(document: dict[str, Any]) -> None:
    read = made(document)
    assert made(json.loads(json.dumps(read.document()))) == read


def test_a_configuration_does_not_change() -> None:
    read = made(config())
    with pytest.raises(ValueError, match="frozen"):
        read.networks = ()  # type: ignore[misc]
    assert parse(Config, read) == read


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("network", "../n"),
        ("container_id", ""),
        ("container_id", "a/b"),
        ("container_id", "a" * 300),
        ("container_id", 7),
        ("ifname", "a/b"),
        ("ifname", "a b"),
        ("ifname", "sixteen_and_more"),
        ("ifname", ""),
        ("pod_id", "a\nb"),
        ("host_ip", "node"),
        ("host_ip", "10.0.0.0/8"),
        ("more", "x"),
    ],
)
def test_requests_are_checked(key: str, value: object) -> None:
    right = {"network": "n", "container_id": "c", "ifname": "eth0", "pod_id": "ns/p", "host_ip": "10.0.0.1"}
    assert parse(Ask, right)
    with pytest.raises(Invalid, match=key):
        parse(Ask, {**right, key: value})


def test_an_allocation_needs_its_owner() -> None:
    with pytest.raises(Invalid, match="container_id: is missing"):
        parse(Allocation, {"network": "n", "ifname": "e", "pod_id": "", "host_ip": "10.0.0.1", "ips": []})


def space(**pool: Any) -> AddressSpace:
    return nets(made(pools({**A, **pool})), {"a": "x"})["n"].pools[0]


@st.composite
def spaces(draw: st.DrawFn) -> AddressSpace:
    bounds = sorted(draw(st.sets(st.integers(1, 1022), min_size=2, max_size=12)))
    pairs = list(zip(bounds[::2], bounds[1::2], strict=False))
    ranges = [{"start": f"10.1.{a >> 8}.{a & 255}", "end": f"10.1.{b >> 8}.{b & 255}"} for a, b in pairs]
    gateway = draw(st.none() | st.integers(1, 1022).map(lambda at: f"10.1.{at >> 8}.{at & 255}"))
    return space(subnet="10.1.0.0/22", ranges=ranges, **({"gateway": gateway} if gateway else {}))


@given(spaces())
def test_the_lanes_walk_every_address_once(pool: AddressSpace) -> None:
    """The shards yield each address of the ranges except the gateway once, in order within a shard."""
    wanted = {at for start, end in pool.ranges for at in range(start, end + 1)} - {pool.gateway}
    walked = []
    for shard in range(SHARDS):
        cursor = -1
        while (address := pool.next(shard, cursor)) is not None:
            assert address > cursor
            assert address % SHARDS == shard
            assert shard in pool.shards
            walked.append(address)
            cursor = address
    assert len(walked) == len(set(walked)) == pool.total
    assert set(walked) == wanted
    assert all(map(pool.usable, walked))


@pytest.mark.parametrize(
    ("subnet", "total"),
    [
        ("10.1.0.0/24", 254),
        ("10.1.0.0/30", 2),
        ("10.1.0.0/31", 2),
        ("10.1.0.0/32", 1),
        ("10.0.0.0/8", 2**24 - 2),
    ],
)
def test_the_default_range_is_all_that_hosts_may_have(subnet: str, total: int) -> None:
    assert space(subnet=subnet).total == total
    assert space(subnet="fd00::/120").total == 255
    assert space(subnet="fd00::/127").total == 2
