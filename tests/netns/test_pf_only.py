"""``pfOnly``: the PF itself moves into the pod and back."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from harness.veth import Node

pytestmark = pytest.mark.modes("resident")


def config(node: Node, **more: Any) -> dict[str, Any]:
    base = {"pfOnly": True, "cniVersion": "1.1.0", "ipam": node.host_local(delegate=False)}
    return node.conf(**base | more)


def pf(node: Node) -> dict[str, Any]:
    """Return the PF in the host, without the values that a move changes."""
    volatile = ("ifindex", "operstate", "qdisc", "link_index", "link", "flags")
    shown = node.link("pf0")
    return {key: shown[key] for key in shown.keys() - set(volatile)} | {"up": "UP" in shown["flags"]}


@pytest.mark.parametrize(("up", "release"), [("up", "DEL"), ("down", "DEL"), ("up", "GC")])
def test_every_verb(either: Node, up: str, release: str) -> None:
    """DEL and GC restore the PF's MAC and MTU after the pod's changes."""
    node, pod = either, either.pod()
    node.nip("link", "set", "pf0", up, "mtu", "1450", "alias", "uplink")
    before, vfs = pf(node), node.state()
    conf = config(node, mtu=1400)
    result = node.add(conf, pod)
    shown = node.link("eth0", pod)
    assert (shown["mtu"], shown["address"], "UP" in shown["flags"]) == (1400, before["address"], True)
    assert result["interfaces"][0]["pciID"] == node.tree.pf_pci
    assert node.addresses("eth0", pod) == ["10.77.0.2/24"]
    assert "pf0" not in node.links()
    node.check(conf, pod, result)
    assert node.run("STATUS", conf).status == 0
    said = node.refused(11, "ADD", conf, node.pod())
    assert said.startswith(f"master 'pf0' is not free: it belongs to container {pod}, eth0")
    node.ip("-n", pod, "link", "set", "eth0", "down")
    node.ip("-n", pod, "link", "set", "eth0", "address", "02:00:00:00:00:77", "mtu", "1300")
    node.refused(103, "CHECK", conf | {"prevResult": result}, pod)
    if release == "GC":
        node.collect(conf)
    else:
        node.delete(conf, pod)
    assert (pf(node), node.state(), node.records(), node.leases()) == (before, vfs, [], [])


def test_pods_have_vfs(node: Node) -> None:
    """An ADD of the PF is refused, without side effects, while a pod has one of its VFs."""
    pod, other, conf = node.pod(), node.pod(), node.conf(vf=1, ipam=None)
    node.add(conf, other)
    before = node.snapshot(), pf(node)
    said = node.refused(11, "ADD", config(node), pod)
    assert said.startswith(f"pfOnly: VF 1 of pf0 is in use: it belongs to container {other}, eth0")
    assert (node.snapshot(), pf(node)) == before
    node.delete(conf, other)
    node.add(config(node), pod)
    node.delete(config(node), pod)


def test_the_host_uses_the_pf(node: Node) -> None:
    node.nip("address", "add", "192.0.2.1/24", "dev", "pf0")
    before = node.snapshot(), pf(node)
    said = node.refused(101, "ADD", config(node), node.pod())
    assert "pfOnly: pf0 is used by the host: address 192.0.2.1/24" in said
    assert (node.snapshot()["records"], pf(node)) == ([], before[1])


def test_a_card_with_representors(node: Node) -> None:
    (node.tree.device() / "net" / "pf0rep0").mkdir()
    assert "the card of pf0 also has pf0rep0" in node.refused(7, "ADD", config(node), node.pod())
    assert (node.records(), node.leases(), node.locks()) == ([], [], [])


def test_a_failed_add(node: Node) -> None:
    """An ADD is undone if the pod already has a device with the interface's name."""
    pod, before = node.pod(), pf(node)
    node.ip("-n", pod, "link", "add", "eth0", "index", "500", "type", "veth", "peer", "name", "other")
    node.refused(101, "ADD", config(node), pod)
    assert (pf(node), node.records(), node.leases()) == (before, [], [])


@pytest.mark.modes("process")
def test_a_killed_add(node: Node) -> None:
    """The next ADD finds the PF of a killed ADD by its record, and returns the PF first."""
    pod, other, before = node.pod(), node.pod(), pf(node)
    conf = config(node, ipam=node.other_ipam("dhcp", ADD="kill -9 $PPID"))  # dhcp runs after the move
    assert node.run("ADD", conf, pod).status == -signal.SIGKILL
    assert "pf0" not in node.links()
    conf = config(node)
    node.add(conf, other)
    assert "UP" in node.link("eth0", other)["flags"]
    node.delete(conf, pod)
    node.delete(conf, other)
    assert (pf(node), node.records(), node.leases()) == (before, [], [])


@pytest.mark.modes("process")
@pytest.mark.parametrize(
    ("more", "args", "keys"),
    [
        ({"vf": 0}, "", "vf"),
        ({"vlan": 7, "vlanQoS": 1, "vlanProto": "802.1ad"}, "", "vlan, vlanQoS, vlanProto"),
        ({"spoofchk": "off"}, "", "spoofchk"),
        ({"max_tx_rate": 10, "trust": "on"}, "", "max_tx_rate, trust"),
        ({"mac": "02:00:00:00:00:09"}, "", "mac"),
        ({"attach": "macvlan"}, "", "attach"),
        ({"deviceID": "0000:01:10.0"}, "", "deviceID"),
        ({}, "VF=1;VLAN=3", "vlan, vf"),
    ],
    ids=str,
)
def test_keys_of_a_vf(node: Node, more: dict[str, Any], args: str, keys: str) -> None:
    said = node.refused(7, "ADD", config(node, **more), node.pod(), args=args)
    assert said.startswith(f"{keys}: with pfOnly the pod gets the PF itself")
    assert (node.records(), node.leases(), pf(node)["up"]) == ([], [], False)


@pytest.mark.modes("process")
def test_keys_that_ask_for_nothing(node: Node) -> None:
    pod, conf = node.pod(), config(node, vlan=0, vlanQoS=0, max_tx_rate=0, min_tx_rate=0)
    node.add(conf, pod)
    node.delete(conf, pod)
    assert "a VF" not in node.refused(7, "ADD", config(node, pfOnly="maybe"), pod)


@pytest.fixture
def owner(node: Node) -> Iterator[str]:
    """A pod that has the PF; the test's sysfs then lists no network device of the PF."""
    pod = node.pod()
    conf = node.conf(pfOnly=True, ipam=None)
    node.add(conf, pod)
    node.tree.remove_netdev(None)
    yield pod
    node.tree.add_netdev(None, "pf0")
    node.delete(conf, pod)
    node.reindex()


@pytest.mark.parametrize("which", ["master", "masters", "vf", "deviceID"])
def test_a_vf_of_a_pf_in_a_pod(node: Node, owner: str, which: str) -> None:
    """A VF of a PF in a pod is refused as not free: it is available again when the pod ends."""
    more: dict[str, Any] = {
        "master": {},
        "masters": {"master": ["pf9", "pf0"]},
        "vf": {"vf": 1},
        "deviceID": {"deviceID": node.tree.pci(0), "master": None},
    }[which]
    before = node.kept()
    said = node.refused(11, "ADD", node.conf(ipam=node.host_local(delegate=False), **more), node.pod())
    assert f"is in a pod: it belongs to container {owner}, eth0" in said
    assert node.kept() == before | {"pods": node.kept()["pods"]}


def test_status(node: Node, owner: str) -> None:
    """STATUS succeeds while the PF is in a pod, as while all VFs are in pods."""
    for more in ({}, {"deviceID": node.tree.pci(0), "master": None}):
        assert node.run("STATUS", node.conf(cniVersion="1.1.0", ipam=None, **more)).status == 0


@pytest.mark.modes("process")
def test_vfs_shows_the_pf(node: Node, owner: str) -> None:
    """``vfs`` lists a PF that is in a pod, with its owner."""
    shown = node.operate("vfs").stdout
    assert any(node.tree.pf_pci in line and f"{owner}/eth0" in line for line in shown.splitlines()), shown
    (pf,) = json.loads(node.operate("vfs", "--json").stdout)
    assert (pf["pf"], pf["owner"]) == ("pf0", {"containerID": owner, "ifname": "eth0"})


@pytest.mark.modes("process")
def test_a_killed_add_of_a_vf(node: Node) -> None:
    """An ADD of the PF first returns the VF of a killed ADD."""
    pod, other, before = node.pod(), node.pod(), pf(node)
    node.prelude = (
        "from sriov_fast.vf import attach; import os, signal; "
        "attach.address = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert node.run("ADD", node.conf(vf=0), pod).status == -signal.SIGKILL
    node.prelude = "pass"
    node.add(config(node), other)
    assert [record.partition("~")[0] for record in node.records()] == [node.tree.pf_pci]
    node.delete(config(node), other)
    assert (pf(node), node.records(), node.tree.netdev(0) in node.links()) == (before, [], True)
