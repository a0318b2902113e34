"""A DEL restores the VF's device: flags, queues, names, offloads and programs."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from harness import devices
from harness.pod import links
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
    "address 02:00:00:00:00:66",
]


def in_pod(node: Node, pod: str, *lines: str) -> None:
    for line in lines:
        node.ip("-n", pod, *line.split())


def altnames(node: Node, name: str) -> list[str]:
    found: list[str] = node.link(name).get("altnames", [])
    return found


def is_released(node: Node, before: dict[str, Any]) -> None:
    assert (node.state(), node.records(), node.leases()) == (before, [], [])


def test_all_settings_at_once(either: Node) -> None:
    """A DEL restores every setting that the pod has changed."""
    node = either
    node.nip("link", "set", "dev", "pf0v0", "txqueuelen", "500", "alias", "the operator's", "group", "9")
    node.nip("link", "property", "add", "dev", "pf0v0", "altname", "one", "altname", "two")
    node.nip("link", "set", "dev", "pf0v0", "addrgenmode", "none", "allmulticast", "on")
    before, pod = node.state(), node.pod()
    node.add(node.conf(), pod)
    in_pod(node, pod, *(f"link set dev eth0 {change}" for change in (*LINK_CHANGES, "allmulticast off")))
    in_pod(
        node,
        pod,
        "address add 192.0.2.1/24 dev eth0",
        "link property del dev eth0 altname one",
        "link property add dev eth0 altname three",
    )
    for command in (GSO, TSO, SG, TX):
        devices.switch(pod, "eth0", command, 0)
    devices.switch(pod, "eth0", GRO, 1)
    node.delete(node.conf(), pod)
    is_released(node, before)


@pytest.mark.parametrize(("how", "mtu"), [("generic", 1500), ("driver", 1500), ("driver", 9000)])
def test_an_xdp_program(node: Node, how: str, mtu: int) -> None:
    """A DEL detaches the pod's XDP program and restores the MTU.

    With a program in the driver, the device refuses a large MTU.
    """
    node.nip("link", "set", "dev", "pf0v0", "mtu", str(mtu))
    before, pod = node.state(), node.pod()
    node.add(node.conf(mtu=1500), pod)
    devices.attach_xdp(pod, "eth0", how)
    assert "xdp" in node.link("eth0", pod)
    done = node.delete(node.conf(), pod)
    is_released(node, before)
    assert "level=warning" not in done.stderr


def test_a_program_of_the_operator_stays(node: Node) -> None:
    """An XDP program that the operator attached to the VF stays if the pod does not change it."""
    devices.attach_xdp(node.host, "pf0v0", "generic")
    before, pod = node.state(), node.pod()
    node.add(node.conf(), pod)
    done = node.delete(node.conf(), pod)
    is_released(node, before)
    assert before["pf0v0"]["xdp"]
    assert "differs from before" not in done.stderr


@pytest.mark.modes("deferred")
@pytest.mark.parametrize("hook", ["ingress", "egress"])
@pytest.mark.parametrize("how", ["by program", "by link"])
def test_a_program_of_tcx(either: Node, hook: str, how: str) -> None:
    """A DEL detaches the pod's tcx programs, which rtnetlink does not show, and keeps the operator's."""
    node, pod = either, either.pod()
    if not devices.tcx(node.host, "pf0v0"):
        pytest.skip("the kernel has no tcx (Linux 6.6)")
    devices.attach_tcx(node.host, "pf0v0", "ingress")  # the operator's program
    node.add(node.conf(), pod)
    held = devices.hold(pod, "eth0", hook) if how == "by link" else -1
    if held < 0:
        devices.attach_tcx(pod, "eth0", hook)
    assert sum(devices.tcx(pod, "eth0")) == 2
    node.delete(node.conf(), pod)
    assert devices.tcx(node.host, "pf0v0") == [1, 0]
    if held >= 0:
        os.close(held)


def test_an_xdp_program_that_a_link_holds(either: Node) -> None:
    """A DEL removes an XDP program that a bpf_link holds; netlink cannot detach such a program."""
    node, before, pod = either, either.state(), either.pod()
    node.add(node.conf(), pod)
    held = devices.hold(pod, "eth0", "xdp")
    done = node.delete(node.conf(), pod)
    os.close(held)
    assert node.state() == before
    assert "differs from before" not in done.stderr


def test_queue_disciplines_go_with_the_move(node: Node) -> None:
    """The kernel removes the pod's queue disciplines and filters when the device moves."""
    pod = node.pod()
    node.add(node.conf(), pod)
    tc = ("netns", "exec", pod, "tc", "qdisc", "add", "dev", "eth0")
    node.ip(*tc, "clsact")
    node.ip(*tc, "root", "tbf", "rate", "1mbit", "burst", "10kb", "latency", "50ms")
    node.delete(node.conf(), pod)
    left = json.loads(node.ip("netns", "exec", node.host, "tc", "-j", "qdisc", "show", "dev", "pf0v0"))
    assert [item["kind"] for item in left if item["kind"] in ("tbf", "clsact", "ingress")] == []


def test_a_failed_add_leaves_the_device_alone(node: Node) -> None:
    """The undo of an ADD restores the device; the move resets IPv6 address generation, for example."""
    node.nip("link", "set", "dev", "pf0v0", "addrgenmode", "none", "txqueuelen", "500")
    before, pod = node.state(), node.pod()
    beyond = {"dst": "10.9.0.0/16", "gw": "192.168.1.1"}
    ipam = {"type": "static", "addresses": [{"address": "10.1.0.2/24"}], "routes": [beyond]}
    assert node.run("ADD", node.conf(ipam=ipam), pod).status == 1
    assert (node.state(), node.records()) == (before, [])


# The pod's changes of its device, and the names of the pod's devices that stay. An altname that the host
# uses must not keep the VF in the pod; a remaining macvlan would share the VF with the next pod.
CHANGES: dict[str, tuple[list[str], set[str]]] = {
    "bridge": (["link add br0 type bridge", "link set eth0 master br0"], {"br0"}),
    "devices on top": (
        [
            "link add other type veth peer name other-peer",
            "link add link other name stays type macvlan",
            "link add link eth0 name one type macvlan mode bridge",
            "link add link eth0 name two type macvlan mode bridge",
            "link add link one name three type macvlan mode bridge",
        ],
        {"other", "other-peer", "stays"},
    ),
    "altname of the PF": (["link property add dev eth0 altname pf0"], set()),
    "altname of itself": (["link property add dev eth0 altname pf0v0"], set()),
    "other altnames": (
        [
            "link property del dev eth0 altname enp3s16",
            "link property add dev eth0 altname pf0v1 altname mine",
        ],
        set(),
    ),
    "settings": (["link set dev eth0 promisc on alias left-behind"], set()),
}


RELEASED = [*((what, "DEL") for what in CHANGES), ("settings", "GC"), ("other altnames", "GC")]


@pytest.mark.parametrize(("what", "by"), RELEASED)
def test_what_the_pod_has_made_of_it(either: Node, what: str, by: str) -> None:
    """DEL and GC restore the VF and delete its upper devices; the pod's other devices stay."""
    node, pod = either, either.pod()
    for name in ("enp3s16", "enp3s16v0np0-which-is-a-long-one"):
        node.nip("link", "property", "add", "dev", "pf0v0", "altname", name)
    before, (changes, stay) = node.state(), CHANGES[what]
    node.add(node.builtin(mtu=1400), pod)
    in_pod(node, pod, *changes)
    if by == "DEL":
        node.delete(node.builtin(), pod)
    else:
        node.collect(node.builtin())
        node.homed()
    is_released(node, before)
    assert {item["ifname"] for item in links(pod)} == {"lo"} | stay
    assert "master" not in node.link("pf0v0")


def test_an_operators_altname_that_was_taken_meanwhile(either: Node) -> None:
    """The VF returns without an altname that another device of the host has taken."""
    node, pod = either, either.pod()
    node.nip("link", "property", "add", "dev", "pf0v0", "altname", "enp3s16")
    before = node.state()
    node.add(node.builtin(), pod)
    node.nip("link", "property", "add", "dev", "pf0", "altname", "enp3s16")
    node.delete(node.builtin(), pod)
    before["pf0v0"]["altnames"] = []
    is_released(node, before)
    assert altnames(node, "pf0") == ["enp3s16"]


def test_an_altname_that_clashes_in_the_pod(either: Node) -> None:
    """The error of an ADD names the altname of the VF that the pod's namespace has already."""
    node, pod = either, either.pod()
    node.nip("link", "property", "add", "dev", "pf0v0", "altname", "enp3s16")
    in_pod(node, pod, "link add enp3s16 type veth peer name p")
    before = node.snapshot()
    said = node.refused(101, "ADD", node.builtin(), pod)
    assert "altname 'enp3s16' of pf0v0" in said
    assert node.snapshot() == before
