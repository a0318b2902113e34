"""What can be asked of a VF, on a real card: both sides have it after ADD, neither has it after DEL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.card import Card, Node, differences, start_server
from harness.pod import ip, link
from harness.waiting import wait_for

MAC, OTHER, ADMIN = "02:5f:00:00:00:01", "02:5f:00:00:00:02", "02:5f:00:00:00:0a"
VF = 1


@contextmanager
def operator(card: Card, *, admin: str = "", adopted: bool = False, trust: bool = False) -> Iterator[None]:
    """Set VF 1 up as an operator may have, before any pod; take it back."""
    name = card.vf(VF).netdev
    own = link(name)["address"]
    try:
        if admin:
            card.set(VF, "mac", admin)
        if adopted:  # the driver takes the MAC over when it resets the VF
            ip("link", "set", name, "up")
            ip("link", "set", name, "down")
            assert link(name)["address"] == admin
        if trust:
            card.set(VF, "trust", "on")
        yield
    finally:
        card.set(VF, "trust", "off")
        if admin:
            card.restore_mac(VF, own)


def both_sides(card: Card, pod: str, result: dict[str, Any], mac: str) -> None:
    assert link("eth0", pod)["address"] == mac
    assert card.on_pf(VF)["address"] == mac
    assert result["interfaces"][0]["mac"] == mac


HISTORIES = [
    pytest.param({}, id="untrusted"),
    pytest.param({"admin": ADMIN}, id="with a MAC of the operator that the VF does not use yet"),
    pytest.param({"admin": ADMIN, "adopted": True, "trust": True}, id="trusted, with a MAC of the operator"),
]


@pytest.mark.parametrize("history", HISTORIES)
def test_mac(node: Node, card: Card, history: dict[str, Any]) -> None:
    """Twice, since what a driver holds against a second MAC shows only then."""
    pod = node.pod()
    with operator(card, **history):
        before = card.state()
        for mac in (MAC, OTHER):
            conf = node.conf(vf=VF, mac=mac)
            both_sides(card, pod, node.add(conf, pod), mac)
            node.delete(conf, pod)
            assert not differences(before, card.state())


def test_the_mac_that_it_has_already(node: Node, card: Card) -> None:
    own = link(card.vf(VF).netdev)["address"]
    pod = node.pod()
    conf = node.conf(vf=VF)
    conf["runtimeConfig"] = {"mac": own}
    before = card.state()
    both_sides(card, pod, node.add(conf, pod), own)
    node.delete(conf, pod)
    assert not differences(before, card.state())


def test_everything_that_the_card_can_do(node: Node, card: Card) -> None:
    """All at once, on a VF that was up, with an MTU of the operator's."""
    name = card.vf(VF).netdev
    pod = node.pod()
    conf = node.conf(vf=VF, mac=MAC, vlan=100, vlanQoS=3, spoofchk="off", trust="on", mtu=1400)
    conf["max_tx_rate"] = 500
    ip("link", "set", name, "mtu", "1450")
    ip("link", "set", name, "up")
    try:
        wait_for(lambda: "LOWER_UP" in link(name)["flags"], "carrier")
        before = card.state()
        result = node.add(conf, pod)
        both_sides(card, pod, result, MAC)
        held = card.on_pf(VF)
        assert held["vlan_list"] == [{"vlan": 100, "qos": 3}]
        assert held["spoofchk"] is False
        assert held["trust"] is True
        assert held["rate"] == {"max_tx": 500, "min_tx": 0}
        inside = link("eth0", pod)
        assert inside["mtu"] == 1400
        assert "UP" in inside["flags"]
        assert result.get("ips") in (None, [])  # no IPAM was asked for
        checked = node.run("CHECK", conf | {"prevResult": result}, pod)
        assert checked.status == 0, checked
        node.delete(conf, pod)
        assert "UP" in link(name)["flags"]
        assert not differences(before, card.state())
        wait_for(lambda: "LOWER_UP" in link(name)["flags"], "carrier, back home")
    finally:
        ip("link", "set", name, "down")
        ip("link", "set", name, "mtu", "1500")


def test_vlan_of_the_operator_comes_back(node: Node, card: Card) -> None:
    pod = node.pod()
    conf = node.conf(vf=VF)
    card.set(VF, "vlan", "7", "qos", "2")
    try:
        before = card.state()
        node.add(conf, pod, args="VLAN=0")  # 0 is a choice, too
        assert card.vlan(VF) == 0
        node.delete(conf, pod)
        assert not differences(before, card.state())
        node.add(conf, pod)  # nothing asked: nothing set
        assert card.vlan(VF) == 7
        node.delete(conf, pod)
        assert not differences(before, card.state())
    finally:
        card.set(VF, "vlan", "0")


REFUSED = [
    pytest.param({"link_state": "disable"}, id="link_state"),
    pytest.param({"min_tx_rate": 100, "max_tx_rate": 100000}, id="rates"),
    pytest.param({"vlan": 100, "vlanProto": "802.1ad"}, id="vlanProto"),
]


@pytest.mark.parametrize("asked", REFUSED)
def test_what_the_driver_refuses_is_undone(node: Node, igb: Card, asked: dict[str, Any]) -> None:
    """Everything that went before the refusal, the address too."""
    pod = node.pod()
    before = igb.state()
    conf = node.conf(vf=VF, mac=MAC, trust="on", ipam=node.host_local(), **asked)
    error = node.refused(100, "ADD", conf, pod)
    assert igb.pf in error
    assert f"VF {VF}" in error
    for key, value in asked.items():
        assert str(value).lower() in error.lower(), key
    assert not differences(before, igb.state())
    assert node.leases() == []
    assert not node.records()


def test_an_mtu_that_is_too_large_is_undone(node: Node, card: Card) -> None:
    pod = node.pod()
    before = card.state()
    error = node.refused(
        7, "ADD", node.conf(vf=VF, mac=MAC, vlan=100, mtu=65535, ipam=node.host_local()), pod
    )
    assert "mtu 65535" in error
    assert not differences(before, card.state())
    assert node.leases() == []


# --- which VF


def test_vf_by_index_and_by_address(node: Node, card: Card) -> None:
    """VF 0 is a choice like any other, and what is asked for is what is given."""
    first, second, third = node.pod(), node.pod(), node.pod()
    last = card.vfs()[-1]
    result = node.add(node.conf(cniVersion="1.1.0"), first, args=f"VF={last.number}")
    assert result["interfaces"][0]["pciID"] == last.pci
    node.add(node.conf(vf=0), second)
    assert node.owned(second).number == 0
    by_address = node.conf(master=None, vf=None, runtimeConfig={"deviceID": card.vf(VF).pci})
    node.add(by_address, third)
    assert node.owned(third).number == VF
    error = node.refused(11, "ADD", node.conf(vf=0), node.pod())
    assert second in error
    error = node.refused(11, "ADD", by_address, node.pod())
    assert third in error
    node.refused(7, "ADD", node.conf(vf=len(card.vfs())), node.pod())
    node.collect()
    assert not node.records()


# --- addresses


def gateways(pod: str, family: str) -> dict[str, str]:
    shown = json.loads(ip(family, "-j", "-n", pod, "route"))
    return {route["dst"]: route["gateway"] for route in shown if "gateway" in route}


def test_dual_stack_with_routes(node: Node, card: Card) -> None:
    pod = node.pod()
    addresses = [
        {"address": "10.88.0.2/24", "gateway": "10.88.0.1"},
        {"address": "fd00:88::2/64", "gateway": "fd00:88::1"},
    ]
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "10.99.0.0/16", "gw": "10.88.0.254"}]
    dns = {"nameservers": ["10.88.0.53"]}
    ipam = {"type": "static", "delegate": True, "addresses": addresses, "routes": routes}
    conf = node.conf(ipam=ipam, dns=dns)
    node.inside(pod, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")  # as runtimes do
    result = node.add(conf, pod)
    assert node.addresses(pod) == {"10.88.0.2/24", "fd00:88::2/64"}
    assert [item["interface"] for item in result["ips"]] == [0, 0]
    assert result["dns"] == dns
    assert gateways(pod, "-4") == {"default": "10.88.0.1", "10.99.0.0/16": "10.88.0.254"}
    assert gateways(pod, "-6") == {"default": "fd00:88::1"}
    done = node.run("CHECK", conf | {"prevResult": result}, pod)
    assert done.status == 0, done
    node.delete(conf, pod)


def test_an_address_that_cannot_be_set_is_undone(node: Node, card: Card) -> None:
    """The VF is in the pod by then."""
    pod = node.pod()
    before = card.state()
    routes = [{"dst": "0.0.0.0/0", "gw": "192.0.2.1"}]
    ipam = {"type": "static", "addresses": [{"address": "10.88.0.2/24"}], "routes": routes}
    error = node.refused(100, "ADD", node.conf(vf=VF, mac=MAC, vlan=100, ipam=ipam), pod)
    assert "192.0.2.1" in error
    assert not differences(before, card.state())


@pytest.mark.modes("own")
def test_the_plain_backend_does_the_whole(
    node: Node, card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server with the plain backend; CHECK with the compiled one, which understands the record."""
    pod = node.pod()
    before = card.state()
    conf = node.conf(vf=VF, mac=MAC, vlan=100, mtu=1400, cores="0", ipam=node.host_local())
    monkeypatch.setenv("SRIOV_FAST_BACKEND", "python")
    server = start_server(tmp_path / "log")
    result = node.add(conf, pod)
    both_sides(card, pod, result, MAC)
    assert card.vlan(VF) == 100
    node.check(conf, pod, result, env={"SRIOV_FAST_SOCKET": "none", "SRIOV_FAST_BACKEND": "cython"})
    node.delete(conf, pod)
    server.stop()
    assert not differences(before, card.state())
    assert node.leases() == []
