"""CHECK, STATUS, GC and VERSION, as processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.veth import MakeNode, Node, said

pytestmark = pytest.mark.modes("resident")
BOTH = pytest.mark.modes("process", "resident")

# --- CHECK

Change = Callable[[Node, str], object]
ROUTES = [{"dst": "192.0.2.0/24"}, {"dst": "198.51.100.0/24", "gw": "10.1.0.9", "mtu": 1400}]


def in_pod(line: str) -> Change:
    return lambda node, pod: node.ip("-n", pod, *line.split())


def second_mask(node: Node) -> Path:
    return node.tree.mask(node.tree.irqs(0)[1])


def another_device(node: Node, pod: str) -> None:
    for line in ("set eth0 down", "set eth0 name hidden", "add eth0 type veth peer name p"):
        node.ip("-n", pod, "link", *line.split())


ROUTE = "198.51.100.0/24 via 10.1.0.9"
DIFFERENCES: dict[str, tuple[Change, str]] = {
    "down": (in_pod("link set eth0 down"), "is down"),
    "MAC": (in_pod("link set eth0 address 02:00:00:00:00:01"), "mac is 02:00:00:00:00:01, not "),
    "MTU": (in_pod("link set eth0 mtu 1400"), "mtu is 1400, not 1450"),
    "address": (in_pod("address del 10.1.0.2/24 dev eth0"), "address 10.1.0.2/24 is missing"),
    "prefix": (in_pod("address flush dev eth0"), "address fd00:1::2/64 is missing"),
    "route": (in_pod("route del 192.0.2.0/24"), "route 192.0.2.0/24 via 10.1.0.1 is missing"),
    "route's MTU": (in_pod(f"route replace {ROUTE} dev eth0 mtu 1300"), f"route {ROUTE} is missing"),
    "mask": (
        lambda node, pod: second_mask(node).write_text("00000001\n"),
        "interrupt 101 has mask 00000001, not 00000010",
    ),
    "interrupt": (
        lambda node, pod: second_mask(node).unlink(),
        "interrupt 101 has mask none: it is gone, not 00000010",
    ),
    "no device": (in_pod("link del eth0"), "not in the namespace"),
    "another device": (another_device, "is another device"),
}


def checked(node: Node) -> tuple[dict[str, Any], str]:
    """Attach a VF with all properties that CHECK compares; return the configuration for CHECK and the pod."""
    pod = node.pod()
    addresses = [{"address": "10.1.0.2/24", "gateway": "10.1.0.1"}, {"address": "fd00:1::2/64"}]
    ipam = node.other_ipam(ADD=said({"cniVersion": "1.1.0", "ips": addresses, "routes": ROUTES}))
    conf = node.conf(cniVersion="1.1.0", mtu=1450, cores="2,4", vf=0, ipam=ipam)
    return conf | {"prevResult": node.add(conf, pod)}, pod


@pytest.mark.parametrize("what", DIFFERENCES)
def test_check_finds(node: Node, what: str) -> None:
    change, words = DIFFERENCES[what]
    conf, pod = checked(node)
    done = node.run("CHECK", conf, pod)
    assert (done.status, done.stdout) == (0, b""), done
    change(node, pod)
    text = node.refused(103, "CHECK", conf, pod)
    assert words in text
    assert f"eth0 of container {pod}" in text


@BOTH
def test_check_lists_all_differences(either: Node) -> None:
    node = either
    conf, pod = checked(node)
    before = node.snapshot()
    assert node.run("CHECK", conf, pod).status == 0
    assert node.snapshot() == before
    node.ip("-n", pod, "link", "set", "eth0", "down", "mtu", "1400")
    text = node.refused(103, "CHECK", conf, pod)
    for words in ("is down", "mtu is 1400", "route 192.0.2.0/24"):
        assert words in text


@BOTH
def test_check_of_what_is_not_attached(node: Node) -> None:
    assert "has no eth0 of ours" in node.refused(103, "CHECK", node.conf(), node.pod())


@pytest.mark.parametrize("key", ["mac", "name", "address"])
def test_check_of_another_previous_result(node: Node, key: str) -> None:
    conf, pod = checked(node)
    previous = conf["prevResult"]
    if key == "address":
        previous["ips"][0]["address"] = "10.1.0.3/24"
    else:
        previous["interfaces"][0][key] = {"mac": "02:00:00:00:00:01", "name": "eth7"}[key]
    assert "prevResult" in node.refused(103, "CHECK", conf, pod)


@BOTH
def test_check_asks_ipam(node: Node) -> None:
    conf, pod = checked(node)
    node.other_ipam(CHECK=said({"code": 117, "msg": "who is that?"}) + "; exit 1")
    assert "who is that?" in node.refused(117, "CHECK", conf, pod)
    assert node.calls() == ["ADD", "CHECK"]


def test_check_where_the_namespace_is_gone(node: Node) -> None:
    conf, pod = checked(node)
    node.ip("netns", "del", pod)
    assert "CNI_NETNS" in node.refused(4, "CHECK", conf, pod)


# --- STATUS


def asked(node: Node, **more: Any) -> dict[str, Any]:
    return node.conf(cniVersion="1.1.0", **more)


@BOTH
def test_status_is_well(either: Node) -> None:
    done = either.run("STATUS", asked(either, ipam=either.host_local()))
    assert (done.status, done.stdout) == (0, b""), done
    assert either.touched() == []


def test_status_of_a_full_node_is_well(node: Node) -> None:
    """STATUS succeeds without a free VF: the lack is temporary, so it is no fault."""
    for index in range(2):
        node.add(node.conf(), node.pod())
        node.tree.remove_netdev(index)
    assert node.run("STATUS", asked(node)).status == 0


@pytest.mark.parametrize("driver", ["", "vfio-pci"])
def test_status_without_a_network_driver(node: Node, driver: str) -> None:
    for index in range(2):
        node.tree.unbind(index)
        if driver:
            node.tree.bind(index, driver)
    text = node.refused(50, "STATUS", asked(node))
    assert ("pf0" in text, "driver" in text) == (True, True), text


def test_status_without_vfs(make_node: MakeNode) -> None:
    node = make_node(vfs=0)
    text = node.refused(50, "STATUS", asked(node))
    assert "no PF of pf0 has a usable VF" in text
    assert "sriov_numvfs" in text
    assert "pf0" in node.refused(11, "ADD", node.conf(), node.pod())


@BOTH
@pytest.mark.parametrize("more", [{"master": "pf9"}, {"master": None, "deviceID": "0000:09:00.1"}])
def test_status_of_what_is_not_there(node: Node, more: dict[str, Any]) -> None:
    text = node.refused(50, "STATUS", asked(node, **more))
    assert next(value for value in more.values() if value) in text


def test_status_by_device(node: Node) -> None:
    """STATUS succeeds if the configuration, or later the runtime, names the device."""
    for more in ({"deviceID": node.tree.pci(1)}, {"capabilities": {"deviceID": True}}):
        assert node.run("STATUS", asked(node, master=None, **more)).status == 0


@BOTH
def test_status_of_ipam(node: Node) -> None:
    ipam = node.other_ipam(STATUS=said({"code": 50, "msg": "the service is down"}) + "; exit 1")
    assert "the service is down" in node.refused(50, "STATUS", asked(node, ipam=ipam))
    assert "no-such" in node.refused(102, "STATUS", asked(node, ipam={"type": "no-such"}))


# --- GC


def valid(*attachments: tuple[str, str], key: str = "cni.dev/valid-attachments") -> dict[str, Any]:
    listed = [{"containerID": container, "ifname": ifname} for container, ifname in attachments]
    return {"cniVersion": "1.1.0", key: listed}


@BOTH
@pytest.mark.parametrize("key", ["cni.dev/valid-attachments", "cni.dev/attachments"])
def test_gc_spares_the_valid_and_other_networks(node: Node, make_node: MakeNode, key: str) -> None:
    node = make_node(vfs=4)
    before, pods = node.state(), [node.pod() for _ in range(3)]
    conf = node.conf(ipam=node.host_local())
    for pod in pods[:2]:
        node.add(conf, pod)
    node.add(conf, pods[0], ifname="net2")
    other = node.conf(name="net2", ipam=node.host_local("10.78.0.0/24"))
    node.add(other, pods[2])
    done = node.run("GC", conf | valid((pods[0], "net2"), key=key))
    assert (done.status, done.stdout) == (0, b""), done
    assert [name.split("~")[1:] for name in node.records()] == [[pods[0], "net2"], [pods[2], "eth0"]]
    assert (node.leases(), node.leases("net2")) == (["10.77.0.4"], ["10.78.0.2"])
    assert node.addresses("net2", pods[0]) == ["10.77.0.4/24"]
    node.delete(conf, pods[0], ifname="net2")
    node.delete(other, pods[2])
    assert node.state() == before


@BOTH
def test_gc_goes_on_after_a_fault(node: Node) -> None:
    """GC releases the second VF although it cannot return the first to the host, and reports that error."""
    pods = [node.pod(), node.pod()]
    conf = node.conf(ipam=node.host_local())
    for pod in pods:
        node.add(conf, pod)
    first = node.run_dir / "vfs" / node.records()[0]
    first.write_text(json.dumps(json.loads(first.read_text()) | {"host_name": "a%db%d"}))
    done = node.run("GC", conf | valid())
    assert (done.status, done.json["code"]) == (1, 100), done
    assert "GC could not release" in done.stderr
    assert node.records() == [first.name]


def test_gc_goes_on_after_ipams_fault(node: Node) -> None:
    pods = [node.pod(), node.pod()]
    before = node.state()
    conf = node.conf(ipam=node.other_ipam(DEL=f"[ $CNI_CONTAINERID != {pods[0]} ] || exit 1"))
    for pod in pods:
        node.add(conf, pod, args="K8S_POD_NAME=p")
    assert node.run("GC", conf | valid()).status == 1
    assert node.state() == before
    assert [name.split("~")[1] for name in node.records()] == [pods[0]], "what is to be given back is known"
    assert node.calls() == ["ADD", "ADD", "DEL", "DEL", "GC"]
    assert f"DEL {pods[1]} eth0 IgnoreUnknown=1;K8S_POD_NAME=p" in (node.root / "calls").read_text()


@pytest.mark.parametrize("document", [{}, {"cni.dev/valid-attachments": "all"}])
def test_gc_without_its_list_releases_nothing(node: Node, document: dict[str, Any]) -> None:
    pod = node.pod()
    node.add(node.conf(), pod)
    before = node.snapshot()
    node.refused(7, "GC", node.conf(cniVersion="1.1.0") | document)
    assert node.snapshot() == before


def test_gc_asks_ipam_with_the_list(node: Node) -> None:
    conf = node.conf(ipam=node.other_ipam(GC='cat > "$ROOT/GC.stdin"')) | valid(("a", "eth0"))
    assert node.run("GC", conf).status == 0
    assert json.loads((node.root / "GC.stdin").read_text()) == conf


# --- VERSION


@BOTH
def test_version(either: Node) -> None:
    done = either.run("VERSION", {"cniVersion": "0.4.0"})
    assert done.json == {
        "cniVersion": "0.4.0",
        "supportedVersions": ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    }
    assert (done.status, done.stderr) == (0, "")


@BOTH
@pytest.mark.parametrize(
    ("command", "version"), [("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "1.0.0"), ("ADD", "2.0.0")]
)
def test_a_verb_that_the_version_lacks(node: Node, command: str, version: str) -> None:
    assert version in node.refused(1, command, node.conf(cniVersion=version), node.pod())
