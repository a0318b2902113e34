"""Which VF an ADD takes on a real card, under which name, and with which MAC."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from harness.card import ZERO_MAC, Card, Node
from harness.pod import ip, link, links, try_ip

MAC = "02:5f:00:00:05:06"
# How the host uses a device, and how that ends; DEV is the device.
USES = {
    "192.0.2.5/24": (["address add 192.0.2.5/24 dev DEV"], ["address del 192.0.2.5/24 dev DEV"]),
    "198.51.100.0/24": (
        ["link set DEV up", "route add 198.51.100.0/24 dev DEV"],
        ["route del 198.51.100.0/24 dev DEV", "link set DEV down"],
    ),
    "vlan7": (["link add link DEV name vlan7 type vlan id 7"], ["link del vlan7"]),
    "br7": (["link add br7 type bridge", "link set DEV master br7"], ["link del br7"]),
    "mv7": (["link add link DEV name mv7 type macvlan mode bridge"], ["link del mv7"]),
}


@contextmanager
def used(device: str, kind: str) -> Iterator[None]:
    """Use a device as the host; skip where the kernel lacks the kind of device."""
    begin, end = USES[kind]
    for line in begin:
        words = ["ip", *line.replace("DEV", device).split()]
        done = subprocess.run(words, check=False, capture_output=True, text=True)
        if done.returncode and "type" in line:
            pytest.skip(f"{line}: {done.stderr}")
        assert done.returncode == 0, done.stderr
    yield
    for line in end:
        ip(*line.replace("DEV", device).split())


@pytest.mark.parametrize("kind", USES)
def test_501_a_vf_that_the_host_uses(node: Node, card: Card, kind: str) -> None:
    """The first VF went to the pod, although the host used it, and the host lost its address."""
    device = card.vf(0).netdev
    pod = node.pod()
    with used(device, kind):
        for conf in (node.conf(vf=0), node.conf(deviceID=card.vf(0).pci)):
            said = node.refused(101, "ADD", conf, pod)
            assert "used by the host" in said
            assert kind in said
        conf = node.conf(cniVersion="1.1.0")
        assert node.add(conf, pod)["interfaces"][0]["pciID"] != card.vf(0).pci
        node.delete(conf, pod)
    node.add(node.conf(vf=0), pod)
    node.delete(node.conf(), pod)


def rename(stop: threading.Event, device: str, other: str) -> None:
    """Give a device's name to another one and back as udev may do, until the device has left for the pod."""
    steps = [(device, "udev0"), (other, device), (device, other), ("udev0", device)]
    while not stop.is_set():
        for old, new in steps:
            if not try_ip("link", "set", old, "name", new):
                return


def test_502_devices_that_are_renamed(node: Node, card: Card) -> None:
    """A pod got the host's device, which had taken the VF's name between the look at sysfs and the move."""
    vf = card.vf(0)
    ip("link", "add", "uplink", "type", "veth", "peer", "name", "switch")
    own, stop = link("uplink")["address"], threading.Event()
    mac = link(vf.netdev)["address"]
    try:
        for _ in range(4):
            pod = node.pod()
            thread = threading.Thread(target=rename, args=(stop, vf.netdev, "uplink"))
            thread.start()
            try:
                node.add(node.conf(vf=0), pod)
            finally:
                stop.set()
                thread.join()
                stop.clear()
            assert link("eth0", pod)["address"] == mac
            assert own in {item["address"] for item in links()}
            node.delete(node.conf(), pod)
            settle(vf.netdev, vf.pci, own)
    finally:
        ip("link", "del", "switch")


def settle(name: str, pci: str, own: str) -> None:
    """Give both devices their names again."""
    for item in links():
        if item["address"] == own and item["ifname"] != "uplink":
            ip("link", "set", item["ifname"], "name", "uplink")
    for item in links():
        if item.get("parentdev") == pci and item["ifname"] != name:
            ip("link", "set", item["ifname"], "name", name)


def test_506_a_mac_that_another_vf_holds(node: Node, card: Card) -> None:
    """Two VFs of one PF were given one MAC, and the card sent the traffic of both to one of them."""
    first, second = node.pod(), node.pod()
    node.add(node.conf(vf=1, mac=MAC), first)
    said = node.refused(101, "ADD", node.conf(vf=0, mac=MAC), second)
    assert ("VF 1" in said, "VF 0" in said) == (True, True), said
    node.delete(node.conf(), first)
    held = card.on_pf(1)["address"]
    if held not in ("", ZERO_MAC):
        assert "VF 1" in node.refused(101, "ADD", node.conf(vf=0, mac=held), second)
        node.add(node.conf(vf=1, mac=held), first)
        node.delete(node.conf(), first)
