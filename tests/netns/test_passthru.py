"""The attach mode "macvlan": the VF stays in the host, and the pod has a macvlan on top of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from harness.veth import Node

pytestmark = pytest.mark.modes("resident")


def conf(node: Node, **more: Any) -> dict[str, Any]:
    ipam = node.host_local(delegate=False, routes=[{"dst": "0.0.0.0/0"}])
    return node.conf(attach="macvlan", ipam=ipam, vf=0) | more


def vf(node: Node) -> dict[str, Any]:
    return node.link(node.tree.netdev(0))


def disabled_ipv6(node: Node, name: str) -> str:
    path = f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6"
    return node.ip("netns", "exec", node.host, "cat", path).strip()


def test_add_and_del(node: Node) -> None:
    pod, name = node.pod(), node.tree.netdev(0)
    before = node.snapshot()
    done = node.add(conf(node, mtu=1400, cniVersion="1.1.0"), pod)
    (interface,) = done["interfaces"]
    own = vf(node)
    assert interface["mac"] == own["address"]
    assert interface["mtu"] == 1400
    assert interface["sandbox"] == f"/run/netns/{pod}"
    assert interface["pciID"] == node.tree.pci(0)
    shown = json.loads(node.ip("-j", "-d", "-n", pod, "link", "show", "dev", "eth0"))[0]
    assert shown["linkinfo"]["info_kind"] == "macvlan"
    assert shown["linkinfo"]["info_data"]["mode"] == "passthru"
    assert "UP" in shown["flags"]
    assert (shown["address"], shown["mtu"]) == (own["address"], 1400)
    assert node.addresses("eth0", pod) == ["10.77.0.2/24"]
    assert node.routes(pod)[0]["dst"] == "default"
    assert {"UP", "NOARP"} <= set(own["flags"])
    assert own["addr_info"] == []
    assert disabled_ipv6(node, name) == "1"
    node.run("CHECK", conf(node, mtu=1400, cniVersion="1.1.0", prevResult=done), pod)
    node.delete(conf(node), pod)
    node.settle()
    assert node.snapshot() == before
    assert disabled_ipv6(node, name) == "0"


@pytest.mark.parametrize("up", [False, True])
def test_the_vf_is_restored(node: Node, up: bool) -> None:
    """MAC, MTU, flags, IPv6 and its address are as before, on a VF that was up or down."""
    pod, name = node.pod(), node.tree.netdev(0)
    node.nip("link", "set", name, "up" if up else "down", "mtu", "1450", "promisc", "on")
    before = node.snapshot()
    node.add(conf(node, mtu=1400), pod)
    node.ip("-n", pod, "link", "set", "eth0", "address", "02:00:00:00:00:99")
    assert vf(node)["address"] == "02:00:00:00:00:99"
    node.delete(conf(node), pod)
    node.settle()
    assert node.snapshot() == before
    local = [item["scope"] for item in vf(node)["addr_info"]]
    assert local == (["link"] if up else [])


@pytest.mark.parametrize("attach", ["move", "macvlan"])
def test_a_warm_vf_stays_warm(node: Node, attach: str) -> None:
    """A VF that is kept up without ARP and IPv6 is so after a DEL, and is not down between pods."""
    pod, name = node.pod(), node.tree.netdev(0)
    path = f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6"
    node.ip("netns", "exec", node.host, "sh", "-c", f"echo 1 > {path}")
    node.nip("link", "set", name, "up", "arp", "off", "addrgenmode", "none")
    before = node.snapshot()
    node.add(conf(node, attach=attach), pod)
    assert "NOARP" not in node.link("eth0", pod)["flags"]
    node.delete(conf(node, attach=attach), pod)
    node.settle()
    assert node.snapshot() == before
    assert disabled_ipv6(node, name) == "1"
    assert vf(node)["addr_info"] == []


def test_the_vf_is_not_moved(node: Node) -> None:
    pod = node.pod()
    index = vf(node)["ifindex"]
    node.add(conf(node), pod)
    assert vf(node)["ifindex"] == index
    assert json.loads(node.record().read_text())["attach"] == "macvlan"
    assert json.loads(node.record().read_text())["ifindex"] == index
    assert node.refused(101, "ADD", conf(node), pod)
    other = node.pod()
    assert "not free" in node.refused(11, "ADD", conf(node), other)
    node.delete(conf(node), pod)
    node.add(conf(node, attach=None), other)
    assert node.tree.netdev(0) not in node.links()
    node.delete(conf(node, attach=None), other)


def test_by_argument(node: Node) -> None:
    pod = node.pod()
    node.add(conf(node, attach="move"), pod, args="ATTACH=macvlan")
    assert node.tree.netdev(0) in node.links()
    node.delete(conf(node, attach="move"), pod)
    assert node.links() >= {node.tree.netdev(0), node.tree.netdev(1)}
    for given in ({"attach": "bridge"}, {"attach": 1}):
        assert "attach" in node.refused(7, "ADD", conf(node, **given), pod)
    assert "ATTACH" in node.refused(7, "ADD", conf(node), pod, args="ATTACH=veth")


def test_the_namespace_goes_first(node: Node) -> None:
    pod = node.pod()
    before = node.snapshot()
    node.add(conf(node), pod)
    node.ip("netns", "del", pod)
    node.pods.remove(pod)
    node.delete(conf(node), pod)
    node.settle()
    del before["pods"][pod]
    assert node.snapshot() == before


def test_a_pod_renames_its_device(node: Node) -> None:
    pod = node.pod()
    before = node.snapshot()
    node.add(conf(node), pod)
    for words in ("link set eth0 name x0", "link set x0 down"):
        node.ip("-n", pod, *words.split())
    node.delete(conf(node), pod)
    node.settle()
    assert node.snapshot() == before


def test_a_taken_name(node: Node) -> None:
    pod = node.pod()
    node.ip("-n", pod, "link", "add", "eth0", "type", "veth")
    before = node.snapshot()
    assert "CNI_IFNAME" in node.refused(101, "ADD", conf(node), pod)
    node.settle()
    assert node.snapshot() == before


def test_a_second_macvlan(node: Node) -> None:
    """Somebody's macvlan in another namespace is seen by no look at the VF; the kernel refuses ours."""
    pod, other = node.pod(), node.pod()
    node.nip("link", "add", "link", node.tree.netdev(0), "netns", other, "name", "m0", "type", "macvlan")
    before = node.kept()
    assert "on top of it" in node.refused(101, "ADD", conf(node), pod)
    node.settle()
    assert node.kept() == before


@pytest.mark.fresh  # the kernel may still be removing the macvlan of a namespace that the test before deleted
def test_check_sees(node: Node) -> None:
    pod, name = node.pod(), node.tree.netdev(0)
    asked = conf(node, mtu=1400, cniVersion="1.1.0")
    asked["prevResult"] = node.add(asked, pod)
    assert node.run("CHECK", asked, pod).status == 0
    changes = {
        "address 10.77.0.2/24": ("-n", pod, "address", "del", "10.77.0.2/24", "dev", "eth0"),
        "is down": ("-n", pod, "link", "set", "eth0", "down"),
        "mtu": ("-n", pod, "link", "set", "eth0", "mtu", "1300"),
        "mac": ("-n", pod, "link", "set", "eth0", "address", "02:00:00:00:00:99"),
        f"{name} in the host is down": ("-n", node.host, "link", "set", name, "down"),
        "answers ARP": ("-n", node.host, "link", "set", name, "arp", "on"),
        "has address 192.0.2.1/24": ("-n", node.host, "address", "add", "192.0.2.1/24", "dev", name),
    }
    for what, words in changes.items():
        node.ip(*words)
        assert what in node.refused(103, "CHECK", asked, pod)
    node.ip("-n", pod, "link", "del", "eth0")
    assert "not in the namespace" in node.refused(103, "CHECK", asked, pod)
    node.nip("address", "del", "192.0.2.1/24", "dev", name)
    node.delete(asked, pod)


def test_gc(node: Node) -> None:
    pod = node.pod()
    before = node.snapshot()
    node.add(conf(node), pod)
    done = node.run("GC", conf(node, cniVersion="1.1.0") | {"cni.dev/valid-attachments": []})
    assert done.status == 0, done
    node.settle()
    assert node.snapshot() == before


def test_both_backends(either: Node) -> None:
    pod = either.pod()
    before = either.snapshot()
    either.add(conf(either), pod)
    either.delete(conf(either), pod)
    either.settle()
    assert either.snapshot() == before
