"""The way home of real VFs: what only a card and its drivers do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.card import Card, Node, differences
from harness.pod import ip, link, links
from harness.waiting import wait_for

VF = 1
OTHER = 2
MACS = {VF: "02:5f:00:00:00:01", OTHER: "02:5f:00:00:00:02"}
ASKED: dict[str, Any] = {"vf": VF, "mac": MACS[VF], "vlan": 100, "mtu": 1400}


def names(pod: str) -> set[str]:
    return {item["ifname"] for item in links(pod)}


def test_402_two_vfs_in_a_bond(node: Node, card: Card) -> None:
    """During the move the bond gave the pod's MAC back to the VF, and the next pod had it."""
    pod, before = node.pod(), card.state()
    ip("-n", pod, "link", "add", "bond0", "type", "bond", "mode", "active-backup")
    for index, ifname in ((VF, "eth0"), (OTHER, "eth1")):
        # trusted: igb lets no other VF change the MAC that the PF has set
        node.add(node.conf(vf=index, mac=MACS[index], mtu=1400, trust="on"), pod, ifname=ifname)
        ip("-n", pod, "link", "set", ifname, "down")
        ip("-n", pod, "link", "set", ifname, "master", "bond0")
    ip("-n", pod, "link", "set", "bond0", "up")
    for index, ifname in ((VF, "eth0"), (OTHER, "eth1")):
        node.delete(node.conf(vf=index), pod, ifname=ifname)
    assert names(pod) == {"lo", "bond0"}
    assert not differences(before, card.state())
    following = node.pod()
    node.add(node.conf(vf=VF), following)
    own = before[card.vf(VF).pci]["device"]["address"]
    assert link("eth0", following)["address"] == own
    node.delete(node.conf(vf=VF), following)
    assert not differences(before, card.state())


def test_403_devices_on_top_and_404_an_altname(node: Node, card: Card) -> None:
    """Of the kinds that are modules, and a name of the host that keeps a VF from coming home."""
    pod, before = node.pod(), card.state()
    node.add(node.conf(**ASKED), pod)
    for name, *kind in (("v5", "vlan", "id", "5"), ("tap", "macvtap"), ("upper", "macvlan")):
        ip("-n", pod, "link", "add", "link", "eth0", "name", name, "type", *kind)
    ip("-n", pod, "link", "property", "add", "dev", "eth0", "altname", card.vf(OTHER).netdev)
    node.delete(node.conf(**ASKED), pod)
    assert names(pod) == {"lo"}
    assert not differences(before, card.state())


def test_405_the_namespace_is_not_found(node: Node, card: Card) -> None:
    """Only a descriptor holds it. The VF keeps its VLAN and its address until it is home."""
    pod, before = node.pod(), card.state()
    conf = node.conf(**ASKED, ipam=node.host_local())
    node.add(conf, pod)
    with open(f"/run/netns/{pod}", "rb"):
        ip("netns", "del", pod)
        node.delete(conf, pod)
        node.collect()
        assert card.vlan(VF) == 100
        assert len(node.leases()) == 1
        assert [path.name.count("~") for path in Path("/run/sriov-fast/vfs").iterdir()] == [3]
    wait_for(lambda: card.vf(VF).netdev, "the VF in the host")
    node.collect()
    assert not differences(before, card.state())
    assert node.leases() == []
    assert not list(Path("/run/sriov-fast/vfs").iterdir())


def test_406_the_vfs_were_made_anew(node: Node, card: Card) -> None:
    """The old pod's DEL overwrote what the operator had set for the new VF."""
    pod, number = node.pod(), len(card.vfs())
    conf = node.conf(**ASKED, ipam=node.host_local())
    node.add(conf, pod)
    card.make_vfs(number)
    card.set(VF, "vlan", "200")
    card.set(VF, "spoofchk", "off")
    ip("link", "set", card.vf(VF).netdev, "mtu", "1300")
    before = card.state()
    node.delete(conf, pod)
    try:
        assert not differences(before, card.state())
        assert (node.leases(), node.records()) == ([], [])
    finally:
        card.make_vfs(number)


def test_406_the_driver_was_bound_anew(node: Node, card: Card) -> None:
    """The device is the operator's; the PF has our VLAN still, which is taken back."""
    pod, pci = node.pod(), card.vf(VF).pci
    conf = node.conf(vf=VF, vlan=100)
    node.add(conf, pod)
    driver = Path(f"/sys/bus/pci/devices/{pci}/driver").resolve()
    (driver / "unbind").write_text(pci)
    (driver / "bind").write_text(pci)
    wait_for(lambda: card.vf(VF).netdev, "the device")
    ip("link", "set", card.vf(VF).netdev, "mtu", "1300")
    node.delete(conf, pod)
    try:
        assert card.vlan(VF) == 0
        assert link(card.vf(VF).netdev)["mtu"] == 1300
        assert not node.records()
    finally:
        card.make_vfs(len(card.vfs()))
