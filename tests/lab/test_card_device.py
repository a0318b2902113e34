"""The restoration of a real VF's device after changes by the pod; the fixtures compare each VF's state."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import devices
from harness.card import Card, Node, differences
from harness.pod import ip, link, links
from harness.waiting import wait_for

GRINGPARAM, SRINGPARAM, GCOALESCE, SCOALESCE, GMSGLVL, SMSGLVL = 0x10, 0x11, 0x0E, 0x0F, 0x07, 0x08
SGSO, STSO, STXCSUM = 0x24, 0x1F, 0x17

Change = Callable[[str], None]


def halve_the_rings(pod: str) -> None:
    rings = devices.ethtool(pod, "eth0", GRINGPARAM, size=9)
    devices.ethtool(pod, "eth0", SRINGPARAM, *rings[1:5], rings[5] // 2, *rings[6:8], rings[8] // 2)


def wait_longer(pod: str) -> None:
    coalescing = devices.ethtool(pod, "eth0", GCOALESCE, size=23)
    devices.ethtool(pod, "eth0", SCOALESCE, coalescing[1] + 50, *coalescing[2:])


def switch_offloads_off(pod: str) -> None:
    for command in (SGSO, STSO, STXCSUM):
        devices.switch(pod, "eth0", command, 0)


def say_more(pod: str) -> None:
    devices.ethtool(pod, "eth0", SMSGLVL, devices.ethtool(pod, "eth0", GMSGLVL, size=2)[1] ^ 1)


def set_the_link(pod: str) -> None:
    words = "promisc on allmulticast on arp off txqueuelen 7 alias left-behind group 5 gso_max_size 4000"
    ip("-n", pod, "link", "set", "dev", "eth0", *words.split())
    ip("-n", pod, "link", "property", "add", "dev", "eth0", "altname", "the-pods")


def attach_a_program(pod: str) -> None:
    devices.attach_xdp(pod, "eth0", "generic")


CHANGES: list[Change] = [
    halve_the_rings,
    wait_longer,
    switch_offloads_off,
    say_more,
    set_the_link,
    attach_a_program,
]


@pytest.mark.parametrize(
    ("asked", "ends"),
    [({}, False), ({"mac": "02:5f:00:00:00:01", "vlan": 100}, False), ({}, True)],
    ids=["plain", "mac", "namespace ends"],
)
def test_everything_at_once(node: Node, card: Card, asked: dict[str, object], ends: bool) -> None:
    """A pod changes all that a driver lets it, and its VF comes home as it was.

    If the pod's namespace ends before the DEL, the kernel returns the device with the pod's settings on it.
    """
    before, pod = card.state(), node.pod()
    node.add(node.conf(vf=0, **asked), pod)
    made = [change.__name__ for change in CHANGES if _done(change, pod)]
    if ends:
        ip("netns", "del", pod)
        time.sleep(1)
    node.delete(node.conf(), pod)
    assert {"switch_offloads_off", "set_the_link"} <= set(made)
    if card.driver == "igb":
        assert len(made) == len(CHANGES)
    assert not differences(before, card.state())


def _done(change: Change, pod: str) -> bool:
    """Make a change; return whether the driver supports it."""
    try:
        change(pod)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return False
    return True


VF, OTHER = 1, 2
MACS = {VF: "02:5f:00:00:00:01", OTHER: "02:5f:00:00:00:02"}
ASKED: dict[str, Any] = {"vf": VF, "mac": MACS[VF], "vlan": 100, "mtu": 1400}


def names(pod: str) -> set[str]:
    return {item["ifname"] for item in links(pod)}


def test_two_vfs_in_a_bond(node: Node, card: Card) -> None:
    """The next pod gets the VF's own MAC, not the MAC that the bond restores during the move."""
    pod, before = node.pod(), card.state()
    ip("-n", pod, "link", "add", "bond0", "type", "bond", "mode", "active-backup")
    for index, ifname in ((VF, "eth0"), (OTHER, "eth1")):
        # igb lets only a trusted VF change the MAC that the PF has set
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


def test_devices_on_top_and_an_altname(node: Node, card: Card) -> None:
    """A DEL removes upper devices (VLAN, macvtap, macvlan), and an altname that is in use on the host."""
    pod, before = node.pod(), card.state()
    node.add(node.conf(**ASKED), pod)
    for name, *kind in (("v5", "vlan", "id", "5"), ("tap", "macvtap"), ("upper", "macvlan")):
        ip("-n", pod, "link", "add", "link", "eth0", "name", name, "type", *kind)
    ip("-n", pod, "link", "property", "add", "dev", "eth0", "altname", card.vf(OTHER).netdev)
    node.delete(node.conf(**ASKED), pod)
    assert names(pod) == {"lo"}
    assert not differences(before, card.state())


def test_the_namespace_is_not_found(node: Node, card: Card) -> None:
    """A VF keeps its VLAN and its lease until it is in the host namespace.

    Only a descriptor holds the pod's namespace, so DEL and GC cannot find the VF.
    """
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


def test_the_vfs_were_made_anew(node: Node, card: Card) -> None:
    """The DEL of a pod keeps the operator's settings of a new VF with the old VF's PCI address."""
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


def test_the_driver_was_bound_anew(node: Node, card: Card) -> None:
    """The DEL removes the ADD's VLAN from the PF, and keeps the operator's settings of the new device."""
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
