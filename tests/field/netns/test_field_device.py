"""A VF comes home exactly as it was: flags, queues, names, offloads and programs of its device included."""

from __future__ import annotations

import json
import os

import pytest

from harness import devices
from harness.veth import Node

pytestmark = [
    pytest.mark.modes("resident", "deferred"),
    pytest.mark.fresh,  # programs stay on the device
]

GRO, GSO, TSO, SG, TX = 0x2C, 0x24, 0x1F, 0x19, 0x17  # ETHTOOL_S*


LINK_CHANGES = [
    "promisc on",
    "allmulticast on",
    "arp off",
    "multicast off",
    "txqueuelen 7",
    "alias left-behind",
    "group 5",
    "mode dormant",
    "broadcast 02:ff:ff:ff:ff:ff",
    "gso_max_size 4000",
    "gso_max_segs 17",
    "gro_max_size 3000",
    "mtu 1400",
]


@pytest.mark.modes("deferred")
@pytest.mark.parametrize("change", LINK_CHANGES)
def test_401_a_setting_of_the_device(node: Node, change: str) -> None:
    """The pod sets flags, queue length, alias or group of its device, and the next pod gets them."""
    before, pod = node.state(), node.pod()
    node.add(node.conf(), pod)
    node.ip("-n", pod, "link", "set", "dev", "eth0", *change.split())
    node.delete(node.conf(), pod)
    node.homed()
    assert node.state() == before


def test_401_all_settings_at_once(either: Node) -> None:
    """The pod changes everything, and the next pod gets the device as the operator had it."""
    node = either
    node.nip("link", "set", "dev", "pf0v0", "txqueuelen", "500", "alias", "the operator's", "group", "9")
    node.nip("link", "property", "add", "dev", "pf0v0", "altname", "one", "altname", "two")
    node.nip("link", "set", "dev", "pf0v0", "addrgenmode", "none", "allmulticast", "on")
    before, pod = node.state(), node.pod()
    node.add(node.conf(), pod)
    for change in (*LINK_CHANGES, "allmulticast off"):
        node.ip("-n", pod, "link", "set", "dev", "eth0", *change.split())
    node.ip("-n", pod, "link", "property", "del", "dev", "eth0", "altname", "one")
    node.ip("-n", pod, "link", "property", "add", "dev", "eth0", "altname", "three")
    for command in (GSO, TSO, SG, TX):
        devices.switch(pod, "eth0", command, 0)
    node.delete(node.conf(), pod)
    node.homed()
    assert node.state() == before


@pytest.mark.modes("deferred")
@pytest.mark.parametrize(("command", "value"), [(GRO, 1), (GSO, 0), (TSO, 0), (SG, 0), (TX, 0)])
def test_401_a_feature(node: Node, command: int, value: int) -> None:
    """The pod switches an offload, and the next pod is slow; a veth has GRO off at first, the others on."""
    before, pod = node.state(), node.pod()
    node.add(node.conf(), pod)
    devices.switch(pod, "eth0", command, value)
    assert devices.features(pod, "eth0") != before["pf0v0"]["features"]
    node.delete(node.conf(), pod)
    node.homed()
    assert node.state() == before


def test_401_an_alternative_name(node: Node) -> None:
    """The pod gives its device an alternative name, takes the operator's away, and both stay so."""
    node.nip("link", "property", "add", "dev", "pf0v0", "altname", "the-operators")
    before, pod = node.state(), node.pod()
    node.add(node.conf(), pod)
    node.ip("-n", pod, "link", "property", "del", "dev", "eth0", "altname", "the-operators")
    node.ip("-n", pod, "link", "property", "add", "dev", "eth0", "altname", "the-pods")
    node.delete(node.conf(), pod)
    node.homed()
    assert node.state() == before


def test_401_an_alternative_name_that_the_host_has(node: Node) -> None:
    """The pod names its device as one of the host: the kernel would refuse the move home."""
    before, pod = node.state(), node.pod()
    node.add(node.conf(), pod)
    node.ip("-n", pod, "link", "property", "add", "dev", "eth0", "altname", "pf0")
    node.delete(node.conf(), pod)
    node.homed()
    assert (node.state(), node.records()) == (before, [])


@pytest.mark.parametrize("how", ["generic", "driver"])
def test_408_an_xdp_program(node: Node, how: str) -> None:
    """The pod attaches an XDP program, and the next pod's packets go through it."""
    before, pod = node.state(), node.pod()
    node.add(node.conf(), pod)
    devices.attach_xdp(pod, "eth0", how)
    assert "xdp" in json.loads(node.ip("-j", "-n", pod, "link", "show", "dev", "eth0"))[0]
    node.delete(node.conf(), pod)
    node.homed()
    assert node.state() == before


def test_408_an_xdp_program_that_forbids_the_old_mtu(node: Node) -> None:
    """The pod lowers the MTU and attaches an XDP program, with which the driver takes no large MTU."""
    node.nip("link", "set", "dev", "pf0v0", "mtu", "9000")
    before, pod = node.state(), node.pod()
    node.add(node.conf(mtu=1500), pod)
    devices.attach_xdp(pod, "eth0", "driver")
    done = node.delete(node.conf(), pod)
    node.homed()
    assert node.state() == before
    assert "level=warning" not in done.stderr


def test_408_a_program_of_the_operator_stays(node: Node) -> None:
    """What the operator attached to the VF is no business of a pod that leaves it alone."""
    devices.attach_xdp(node.host, "pf0v0", "generic")
    before, pod = node.state(), node.pod()
    node.add(node.conf(), pod)
    node.delete(node.conf(), pod)
    node.homed()
    assert node.state() == before
    assert before["pf0v0"]["xdp"]


@pytest.mark.modes("deferred")
@pytest.mark.parametrize("hook", ["ingress", "egress"])
@pytest.mark.parametrize("how", ["by program", "by link"])
def test_408_a_program_of_tcx(either: Node, hook: str, how: str) -> None:
    """The pod attaches a program of tcx, which rtnetlink does not show, and the next pod meets it."""
    node, pod = either, either.pod()
    if not devices.tcx(node.host, "pf0v0"):
        pytest.skip("the kernel has no tcx (Linux 6.6)")
    devices.attach_tcx(node.host, "pf0v0", "ingress")  # the operator's stays
    node.add(node.conf(), pod)
    held = devices.hold(pod, "eth0", hook) if how == "by link" else -1
    if held < 0:
        devices.attach_tcx(pod, "eth0", hook)
    assert sum(devices.tcx(pod, "eth0")) == 2
    node.delete(node.conf(), pod)
    node.homed()
    assert devices.tcx(node.host, "pf0v0") == [1, 0]
    if held >= 0:
        os.close(held)


def test_408_an_xdp_program_that_a_link_holds(either: Node) -> None:
    """The pod holds its XDP program by a pinned bpf_link, which netlink cannot detach."""
    node, before, pod = either, either.state(), either.pod()
    node.add(node.conf(), pod)
    held = devices.hold(pod, "eth0", "xdp")
    done = node.delete(node.conf(), pod)
    node.homed()
    os.close(held)
    assert node.state() == before
    assert "differs from before" not in done.stderr


def test_409_queue_disciplines_go_with_the_move(node: Node) -> None:
    """The pod shapes and filters its traffic; the kernel itself takes that away when the device moves."""
    pod = node.pod()
    node.add(node.conf(), pod)
    tc = ("netns", "exec", pod, "tc", "qdisc", "add", "dev", "eth0")
    node.ip(*tc, "clsact")
    node.ip(*tc, "root", "tbf", "rate", "1mbit", "burst", "10kb", "latency", "50ms")
    node.delete(node.conf(), pod)
    node.homed()
    left = json.loads(node.ip("netns", "exec", node.host, "tc", "-j", "qdisc", "show", "dev", "pf0v0"))
    assert [item["kind"] for item in left if item["kind"] in ("tbf", "clsact", "ingress")] == []


def test_401_a_failed_add_leaves_the_device_alone(node: Node) -> None:
    """The undo of an ADD restores as a DEL does: IPv6 address generation does not survive a move."""
    node.nip("link", "set", "dev", "pf0v0", "addrgenmode", "none", "txqueuelen", "500")
    before, pod = node.state(), node.pod()
    beyond = {"dst": "10.9.0.0/16", "gw": "192.168.1.1"}
    ipam = {"type": "static", "addresses": [{"address": "10.1.0.2/24"}], "routes": [beyond]}
    assert node.run("ADD", node.conf(ipam=ipam), pod).status == 1
    assert (node.state(), node.records()) == (before, [])


def test_401_gc_restores_as_a_del_does(node: Node) -> None:
    """GC brings home what a runtime forgot, and restores the same."""
    before, pod = node.state(), node.pod()
    node.add(node.conf(), pod)
    node.ip("-n", pod, "link", "set", "dev", "eth0", "promisc", "on", "alias", "left-behind")
    devices.switch(pod, "eth0", GRO, 1)
    done = node.run("GC", node.conf(cniVersion="1.1.0") | {"cni.dev/valid-attachments": []})
    assert done.status == 0, done
    node.homed()
    assert node.state() == before


def test_401_nothing_is_set_where_nothing_differs(node: Node) -> None:
    """A pod that changed nothing costs its DEL no message that changes anything."""
    pod = node.pod()
    node.add(node.conf(), pod)
    record = json.loads(node.record().read_text())
    assert record["before_settings"]["txqlen"] == 1000
    assert record["before_ethtool"]["features"]
    done = node.delete(node.conf(), pod)
    node.homed()
    assert "differs from before" not in done.stderr
