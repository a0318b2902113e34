"""The attach mode "macvlan": the VF stays in the host, and the pod gets a macvlan on the VF."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from typing import Any

import pytest

from harness import busy_driver
from harness.pod import disables_ipv6
from harness.veth import ADDRESS, Node, ResidentNode, let_go, said
from harness.waiting import wait_for

pytestmark = pytest.mark.modes("resident")


def conf(node: Node, **more: Any) -> dict[str, Any]:
    ipam = node.host_local(delegate=False, routes=[{"dst": "0.0.0.0/0"}])
    return node.conf(attach="macvlan", ipam=ipam, vf=0) | more


def vf(node: Node) -> dict[str, Any]:
    return node.link(node.tree.netdev(0))


def test_add_and_del(either: Node) -> None:
    node, pod, name = either, either.pod(), either.tree.netdev(0)
    before = node.snapshot()
    done = node.add(conf(node, mtu=1400, cniVersion="1.1.0"), pod)
    (interface,) = done["interfaces"]
    own = vf(node)
    assert interface["mac"] == own["address"]
    assert interface["mtu"] == 1400
    assert interface["sandbox"] == f"/run/netns/{pod}"
    assert interface["pciID"] == node.tree.pci(0)
    shown = node.link("eth0", pod)
    assert shown["linkinfo"]["info_kind"] == "macvlan"
    assert shown["linkinfo"]["info_data"]["mode"] == "passthru"
    assert "UP" in shown["flags"]
    assert (shown["address"], shown["mtu"]) == (own["address"], 1400)
    assert node.addresses("eth0", pod) == ["10.77.0.2/24"]
    assert node.routes(pod)[0]["dst"] == "default"
    assert {"UP", "NOARP"} <= set(own["flags"])
    assert own["addr_info"] == []
    assert disables_ipv6(name, node.host)
    node.check(conf(node, mtu=1400, cniVersion="1.1.0"), pod, done)
    node.delete(conf(node), pod)
    node.settle()
    assert node.snapshot() == before
    assert not disables_ipv6(name, node.host)


@pytest.mark.parametrize("up", [False, True])
def test_the_vf_is_restored(node: Node, up: bool) -> None:
    """A DEL restores MAC, MTU, flags and IPv6 of the VF after the pod's changes."""
    pod, name = node.pod(), node.tree.netdev(0)
    node.nip("link", "set", name, "up" if up else "down", "mtu", "1450", "promisc", "on")
    before = node.snapshot()
    node.add(conf(node, mtu=1400), pod)
    node.ip("-n", pod, "link", "set", "eth0", "address", "02:00:00:00:00:99")
    assert vf(node)["address"] == "02:00:00:00:00:99"
    for words in ("link set eth0 promisc on", "link set eth0 name x0", "link set x0 down"):
        node.ip("-n", pod, *words.split())
    node.delete(conf(node), pod)
    node.settle()
    assert node.snapshot() == before
    local = [item["scope"] for item in vf(node)["addr_info"]]
    assert local == (["link"] if up else [])


@pytest.mark.parametrize("attach", ["move", "macvlan"])
def test_a_warm_vf_stays_warm(node: Node, attach: str) -> None:
    """A DEL restores a VF that was up without ARP and IPv6."""
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
    assert disables_ipv6(name, node.host)
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


@pytest.mark.parametrize("by", ["DEL", "GC"])
def test_the_namespace_goes_first(node: Node, by: str) -> None:
    pod = node.pod()
    before = node.snapshot()
    node.add(conf(node), pod)
    node.end(pod)
    if by == "DEL":
        node.delete(conf(node), pod)
    else:
        node.collect(conf(node))
    node.settle()
    del before["pods"][pod]
    assert node.snapshot() == before


def test_a_taken_name(node: Node) -> None:
    pod = node.pod()
    node.ip("-n", pod, "link", "add", "eth0", "type", "veth")
    before = node.snapshot()
    assert "CNI_IFNAME" in node.refused(101, "ADD", conf(node), pod)
    node.settle()
    assert node.snapshot() == before


@pytest.mark.fresh  # the kernel may still be removing the macvlan of the previous test's namespace
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


@pytest.fixture
def hidden(node: Node) -> Iterator[str]:
    """A namespace with a macvlan on the first VF."""
    name = f"{node.host}-other"
    node.ip("netns", "add", name)
    line = f"link add link pf0v0 name mv0 netns {name} type macvlan mode passthru nopromisc"
    node.nip(*line.split())
    yield name
    node.ip("netns", "del", name)


@pytest.mark.fresh  # the kernel removes the macvlan later
@pytest.mark.modes("resident")
def test_the_next_vf_is_taken(node: Node, hidden: str) -> None:
    """An ADD chooses the next VF if the first has a macvlan in another namespace."""
    pod, other = node.pod(), node.pod()
    before = node.state()
    conf = node.conf(attach="macvlan", ipam=node.host_local(delegate=False))
    node.add(conf, pod)
    assert [record.partition("~")[0] for record in node.records()] == [node.tree.pci(1)]
    assert len(node.leases()) == 1
    text = node.refused(11, "ADD", conf, other)
    assert "VF 0 of pf0 is used by the host: a device in another namespace on top of it" in text
    node.delete(conf, pod)
    assert (node.state(), node.leases()) == (before, [])


@pytest.mark.modes("process")
@pytest.mark.fresh
def test_a_named_vf(node: Node, hidden: str) -> None:
    """An ADD for a named VF fails with the reason, is undone, and chooses no other VF."""
    before = node.kept()
    text = node.refused(101, "ADD", node.conf(attach="macvlan", vf=0), node.pod())
    assert text.startswith("attach macvlan: VF 0 of pf0 (0000:01:10.0) has a device on top of it")
    assert node.kept() == before | {"pods": node.kept()["pods"]}


@pytest.mark.fresh
@pytest.mark.modes("process", "resident")
def test_ipam_names_the_same_vf_again(node: Node, hidden: str) -> None:
    """If IPAM names a used VF twice, the ADD fails with the reason and returns both addresses."""
    before = node.kept()
    conf = node.conf(attach="macvlan", ipam=node.other_ipam(ADD=said(ADDRESS | {"extra": {"vf": 0}})))
    text = node.refused(101, "ADD", conf, node.pod())
    assert "vf 0 of pf0 is used by the host: a device in another namespace on top of it" in text
    assert node.calls() == ["ADD", "DEL", "ADD", "DEL"]
    assert node.kept() == before | {"pods": node.kept()["pods"]}


@pytest.mark.fresh
@pytest.mark.modes("resident", falls_back=True)
@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_killed_between_the_attempts(node: ResidentNode, hidden: str, command: str) -> None:
    """The client executes the ADD itself if the server is killed after the first attempt.

    With "DEL" the server is killed while it returns the first attempt's address, with "ADD" while it requests
    the second one.
    """
    give = said(ADDRESS)
    wait = '[ -e "$ROOT/between" ] || { : >"$ROOT/between"; while [ ! -e "$ROOT/go" ]; do sleep 0.02; done; }'
    first = f'[ -e "$ROOT/first" ] || {{ : >"$ROOT/first"; {give}; exit 0; }}'
    scripts = {"DEL": wait} if command == "DEL" else {"ADD": f"{first}\n{wait}\n{give}"}
    before, pod = node.state(), node.pod()
    conf = node.conf(cniVersion="1.1.0", attach="macvlan", ipam=node.other_ipam("other", **scripts))
    process = node.start("ADD", conf, pod)
    wait_for((node.root / "between").exists, "no second attempt was made")
    node.server.kill()
    let_go(node)
    done = node.finish(process)
    assert (done.status, node.addresses("eth0", pod)) == (0, ["10.1.0.2/24"]), done
    assert [record.partition("~")[0] for record in node.records()] == [node.tree.pci(1)]
    node.check(conf, pod, done.json)
    node.delete(conf, pod)
    assert node.calls()[-1] == "DEL"
    assert (node.state(), node.records(), node.drafts(), node.held()) == (before, [], [], [])


@pytest.mark.modes("process")
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBUSY], ids=errno.errorcode.get)
def test_a_macvlan_that_ends(node: Node, number: int) -> None:
    """An ADD retries while the kernel is still removing the VF's old macvlan."""
    node.prelude = busy_driver.prelude(number, macvlan=3)
    pod, conf = node.pod(), node.conf(attach="macvlan", vf=0)
    node.add(conf, pod)
    node.prelude = "pass"
    node.delete(conf, pod)
