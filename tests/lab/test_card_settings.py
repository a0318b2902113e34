"""The settings of a VF on a real card: an ADD applies them to VF and PF, a DEL restores both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.card import ZERO_MAC, Card, Node, differences, start_server
from harness.pod import ip, link, try_ip
from harness.waiting import wait_for

MAC, OTHER, ADMIN = "02:5f:00:00:00:01", "02:5f:00:00:00:02", "02:5f:00:00:00:0a"
SHARED = "02:5f:00:00:05:06"
VF = 1


@contextmanager
def operator(card: Card, *, admin: str = "", adopted: bool = False, trust: bool = False) -> Iterator[None]:
    """Apply settings to VF 1 as an operator may have done before any pod; undo them afterwards."""
    name = card.vf(VF).netdev
    own = link(name)["address"]
    try:
        if admin:
            card.set(VF, "mac", admin)
        if adopted:  # the driver adopts the MAC when it resets the VF
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
    """An ADD sets the MAC; it runs twice, since a driver may refuse a second MAC."""
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
    """An ADD applies all settings to a VF that was up with an MTU from the operator."""
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
        node.check(conf, pod, result)
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
        node.add(conf, pod, args="VLAN=0")  # an explicit 0 is applied
        assert card.vlan(VF) == 0
        node.delete(conf, pod)
        assert not differences(before, card.state())
        node.add(conf, pod)  # without a VLAN, the ADD sets none
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
    """An ADD undoes its earlier changes and releases its address if the driver refuses a setting."""
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


@pytest.mark.modes("own")
def test_the_plain_backend_does_the_whole(
    node: Node, card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ADD and DEL work with the plain backend; CHECK with the compiled backend reads the same record."""
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


def test_a_mac_that_another_vf_holds(node: Node, card: Card) -> None:
    """An ADD refuses another VF's MAC: the card would send the traffic of both VFs to one of them."""
    first, second = node.pod(), node.pod()
    node.add(node.conf(vf=1, mac=SHARED), first)
    said = node.refused(101, "ADD", node.conf(vf=0, mac=SHARED), second)
    assert ("VF 1" in said, "VF 0" in said) == (True, True), said
    node.delete(node.conf(), first)
    held = card.on_pf(1)["address"]
    if held not in ("", ZERO_MAC):
        assert "VF 1" in node.refused(101, "ADD", node.conf(vf=0, mac=held), second)
        node.add(node.conf(vf=1, mac=held), first)
        node.delete(node.conf(), first)


def test_a_vf_that_the_host_uses(node: Node, card: Card) -> None:
    """An ADD refuses a VF that the host uses, and does not choose such a VF itself."""
    device = card.vf(0).netdev
    pod = node.pod()
    if not try_ip("link", "add", "link", device, "name", "vlan7", "type", "vlan", "id", "7"):
        pytest.skip("the kernel has no VLAN devices")
    try:
        for conf in (node.conf(vf=0), node.conf(deviceID=card.vf(0).pci)):
            said = node.refused(101, "ADD", conf, pod)
            assert "used by the host" in said
            assert "vlan7" in said
        conf = node.conf(cniVersion="1.1.0")
        assert node.add(conf, pod)["interfaces"][0]["pciID"] != card.vf(0).pci
        node.delete(conf, pod)
    finally:
        ip("link", "del", "vlan7")
    node.add(node.conf(vf=0), pod)
    node.delete(node.conf(), pod)
