"""Addresses and routes that the kernel accepts only in a certain form: on link, once, in several sends."""

from __future__ import annotations

from typing import Any

import pytest

from harness.veth import Node

pytestmark = pytest.mark.modes("resident")


def static(
    node: Node, addresses: list[dict[str, str]], routes: list[dict[str, Any]], **more: Any
) -> dict[str, Any]:
    ipam = {"type": "static", "addresses": addresses, "routes": routes}
    return node.conf(ipam=ipam, cniVersion="1.1.0", **more)


def attached(node: Node, conf: dict[str, Any]) -> str:
    """Attach a VF and run CHECK; return the pod."""
    pod = node.pod()
    node.check(conf, pod, node.add(conf, pod))
    return pod


def test_a_gateway_outside_a_host_address(either: Node) -> None:
    """With /32 and /128 no network of the pod contains the gateway: its routes are on link."""
    node = either
    addresses = [
        {"address": "10.1.0.2/32", "gateway": "10.9.0.1"},
        {"address": "fd00:1::2/128", "gateway": "fd00:9::1"},
    ]
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "192.0.2.0/24", "gw": "10.8.0.1"}]
    pod = attached(node, static(node, addresses, routes))
    ways = {way["dst"]: way for way in node.routes(pod)}
    assert {dst: (way["gateway"], way["flags"]) for dst, way in ways.items()} == {
        "default": ("10.9.0.1", ["onlink"]),
        "192.0.2.0/24": ("10.8.0.1", ["onlink"]),
    }
    (way,) = [way for way in node.routes(pod, family="-6") if way["dst"] == "default"]
    assert (way["gateway"], "onlink" in way["flags"]) == ("fd00:9::1", True)


def test_a_gateway_inside_a_network(either: Node) -> None:
    """A gateway inside the address's network is not on link; one outside is refused."""
    node = either
    addresses = [{"address": "10.1.0.2/24", "gateway": "10.1.0.1"}, {"address": "10.2.0.2/32"}]
    pod = attached(node, static(node, addresses, [{"dst": "0.0.0.0/0"}]))
    (way,) = node.routes(pod, "default")
    assert (way["gateway"], way["flags"]) == ("10.1.0.1", [])
    wrong = static(node, addresses, [{"dst": "0.0.0.0/0", "gw": "10.9.0.1"}])
    assert "route 0.0.0.0/0 via 10.9.0.1" in node.refused(100, "ADD", wrong, node.pod())


def test_a_link_local_gateway(either: Node) -> None:
    """A route through a link-local gateway needs no onlink flag, also with a /128."""
    node = either
    pod = attached(node, static(node, [{"address": "fd00:1::2/128"}], [{"dst": "::/0", "gw": "fe80::1"}]))
    (way,) = [way for way in node.routes(pod, family="-6") if way["dst"] == "default"]
    assert (way["gateway"], "onlink" in way["flags"]) == ("fe80::1", False)


def test_what_is_given_twice_is_set_once(either: Node) -> None:
    """The same address or the same route in two spellings is set once."""
    node = either
    address = {"address": "10.1.0.2/24", "gateway": "10.1.0.1"}
    six = {"address": "fd00:1::2/64", "gateway": "fd00:1::1"}
    routes = [
        {"dst": "0.0.0.0/0"},
        {"dst": "0.0.0.0/0", "gw": "10.1.0.1"},
        {"dst": "0.0.0.0/0", "table": 254, "scope": 0, "gw": "10.1.0.1"},
        {"dst": "0.0.0.0/0", "gw": "10.1.0.1", "priority": 9},
        {"dst": "::/0"},
        {"dst": "::/0", "priority": 1024},
    ]
    pod = attached(node, static(node, [address, six, address, six], routes))
    assert node.addresses("eth0", pod) == ["10.1.0.2/24", "fd00:1::2/64"]
    assert sorted(way.get("metric", 0) for way in node.routes(pod, "default")) == [0, 9]
    assert len([way for way in node.routes(pod, family="-6") if way["dst"] == "default"]) == 1


@pytest.mark.modes("process")
def test_more_routes_than_one_send_takes(either: Node) -> None:
    """An ADD sets 9000 routes in several sends, and names the route that the kernel refuses."""
    node = either
    address = {"address": "10.1.0.2/24", "gateway": "10.1.0.1"}
    routes: list[dict[str, Any]] = [
        {"dst": f"172.{16 + n // 4096}.{n // 16 % 256}.{n % 16 * 16}/28"} for n in range(9000)
    ]
    pod = node.pod()
    node.add(static(node, [address], routes), pod)
    assert len(node.routes(pod, "via", "10.1.0.1")) == 9000
    node.delete(static(node, [address], routes), pod)
    routes[7000] = {"dst": "192.0.2.0/24", "gw": "10.9.0.1"}
    said = node.refused(100, "ADD", static(node, [address], routes), node.pod())
    assert "route 192.0.2.0/24 via 10.9.0.1" in said
    assert node.records() == []
