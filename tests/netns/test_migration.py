"""Attachments that sriov-cni, the Kubernetes project's plugin, made before this plugin replaced it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.veth import Node, said

pytestmark = pytest.mark.modes("resident")

MAC = "02:00:00:00:00:77"


def attach_as_sriov_cni(node: Node, pod: str, **more: Any) -> Path:
    """Attach the first VF as sriov-cni does; return the path of its configuration file."""
    name = node.tree.netdev(0)
    link = node.link(name)
    node.nip("link", "set", name, "down")
    node.nip("link", "set", name, "netns", pod, "name", "net1")
    node.ip("-n", pod, "link", "set", "net1", "address", MAC, "mtu", "1400", "up")
    original = {
        "HostIFName": name,
        "SpoofChk": True,
        "Trust": False,
        "AdminMAC": "00:00:00:00:00:00",
        "EffectiveMAC": link["address"],
        "Vlan": 0,
        "VlanQoS": 0,
        "VlanProto": 33024,
        "MinTxRate": 0,
        "MaxTxRate": 0,
        "LinkState": 0,
        "MTU": link["mtu"],
    }
    unset = dict.fromkeys(("vlan", "vlanQoS", "vlanProto", "min_tx_rate", "max_tx_rate"))
    conf = {"MAC": MAC, "MTU": 1400, "VFID": 0, "runtimeConfig": {}, "dns": {}, "logLevel": "info"} | unset
    return written(node, pod, original, **{"ipam": {"type": ""}} | conf | more)


def written(node: Node, pod: str, original: dict[str, Any], **more: Any) -> Path:
    """Write sriov-cni's files for an attachment of the first VF; return the path of the configuration."""
    files, pci = node.root / "sriov-cni", node.tree.pci(0)
    (files / "pci" / "vf_lock").mkdir(parents=True, exist_ok=True)
    (files / "pci" / pci).write_text(f"/run/netns/{pod}")
    conf = conf_of(node) | {"OrigVfState": original, "Master": "pf0"}
    path = files / f"{pod}-net1"
    path.write_text(json.dumps(conf | more))
    return path


def conf_of(node: Node, **more: Any) -> dict[str, Any]:
    return node.by_device(**{"ipam": None} | more)


def files(node: Node) -> list[str]:
    """Return the names of sriov-cni's files."""
    root = node.root / "sriov-cni"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def without_state(shown: dict[str, Any]) -> dict[str, Any]:
    """Return a device without the state that sriov-cni does not restore: its VFs return down."""
    volatile = ("operstate", "flags")
    return {key: value for key, value in shown.items() if key not in volatile}


def test_a_del_restores_the_vf(node: Node) -> None:
    node.nip("link", "set", node.tree.netdev(0), "down")
    before = {name: without_state(shown) for name, shown in node.state().items()}
    pod = node.pod()
    attach_as_sriov_cni(node, pod)
    conf = conf_of(node, ipam=node.other_ipam("host-local"))
    done = node.delete(conf, pod, ifname="net1")
    assert "released an attachment of the SR-IOV CNI" in done.stderr
    assert {name: without_state(shown) for name, shown in node.state().items()} == before
    assert (node.calls(), files(node), node.records(), node.locks()) == (["DEL"], [], [], [])
    node.delete(conf, pod, ifname="net1")  # a repeated DEL succeeds
    node.add(conf_of(node), node.pod())


def test_a_del_after_the_pod_has_ended(node: Node) -> None:
    pod = node.pod()
    before = set(node.state())
    attach_as_sriov_cni(node, pod)
    node.return_device(pod, ifname="net1")
    node.ip("netns", "del", pod)
    node.delete(conf_of(node), pod, ifname="net1")
    assert set(node.state()) == before
    assert files(node) == []


def test_a_del_without_the_pf(node: Node) -> None:
    """A DEL returns the VF, without the PF's settings, if the PF's device is not found."""
    pod = node.pod()
    attach_as_sriov_cni(node, pod, vlan=100, spoofchk="off")
    node.nip("link", "set", node.tree.pf, "name", "elsewhere0")
    done = node.delete(conf_of(node), pod, ifname="net1")
    assert "the PF refuses to restore" in done.stderr
    assert node.tree.netdev(0) in node.state()
    assert files(node) == []


def test_an_ipam_that_fails_keeps_the_files(node: Node) -> None:
    pod = node.pod()
    attach_as_sriov_cni(node, pod)
    fails = said({"code": 11, "msg": "no"}) + "; exit 1"
    conf = conf_of(node, ipam=node.other_ipam("host-local", DEL=fails))
    node.refused(11, "DEL", conf, pod, ifname="net1")
    assert len(files(node)) == 2
    node.other_ipam("host-local")
    node.delete(conf, pod, ifname="net1")
    assert files(node) == []


def test_check_compares_with_its_record(node: Node) -> None:
    pod = node.pod()
    path = attach_as_sriov_cni(node, pod, MAC="")  # a veth PF reports no MAC
    written = json.loads(path.read_text())
    written["OrigVfState"]["EffectiveMAC"] = MAC
    path.write_text(json.dumps(written))
    assert node.run("CHECK", conf_of(node), pod, ifname="net1").status == 0
    node.ip("-n", pod, "link", "set", "net1", "address", "02:00:00:00:00:78")
    assert "mac is 02:00:00:00:00:78" in node.refused(103, "CHECK", conf_of(node), pod, ifname="net1")


def test_its_vf_is_not_given_away(node: Node) -> None:
    """An ADD refuses the VF of such an attachment, in the pod and after its return to the host."""
    pod, other = node.pod(), node.pod()
    attach_as_sriov_cni(node, pod)
    assert pod in node.refused(11, "ADD", conf_of(node), other)
    node.return_device(pod, ifname="net1")
    assert pod in node.refused(101, "ADD", conf_of(node), other)
    assert node.add(node.conf(), other)["interfaces"][0]["name"] == "eth0"
    assert node.tree.pci(1) in node.record().name
    node.ip("netns", "del", pod)
    node.add(conf_of(node), node.pod())  # the pod is gone, so that record is stale


def test_a_late_del_leaves_the_vf_of_another_pod(node: Node) -> None:
    pod, other = node.pod(), node.pod()
    path = attach_as_sriov_cni(node, pod)
    content = path.read_text()
    node.delete(conf_of(node), pod, ifname="net1")
    path.write_text(content)
    node.add(conf_of(node), other)
    there = node.link("eth0", other)
    node.delete(conf_of(node), pod, ifname="net1")
    assert node.link("eth0", other) == there
    assert (files(node), len(node.records())) == ([], 1)


def test_a_status_with_all_vfs_in_its_pods(make_node: Any) -> None:
    node = make_node(vfs=1)
    attach_as_sriov_cni(node, node.pod())
    assert node.run("STATUS", node.conf(cniVersion="1.1.0")).status == 0


@pytest.mark.parametrize("content", ["", "{", "[]", '{"deviceID": 5}', '{"deviceID": "../x"}'])
def test_a_file_that_is_not_understood(node: Node, content: str) -> None:
    """A DEL with an invalid file succeeds; the VF stays as it is, since its original state is unknown."""
    pod = node.pod()
    attach_as_sriov_cni(node, pod).write_text(content)
    done = node.delete(conf_of(node), pod, ifname="net1")
    assert "the VF is not restored" in done.stderr
    assert node.link("net1", pod)["address"] == MAC


@pytest.mark.modes("resident")
def test_check_of_an_attachment_of_the_sriov_cni(node: Node) -> None:
    """CHECK expects no interface for a VF with a userspace driver."""
    node.tree.bind(0, "vfio-pci")
    pod, conf = node.pod(), conf_of(node)
    written(node, pod, {"HostIFName": "", "AdminMAC": "00:00:00:00:00:00", "EffectiveMAC": ""})
    done = node.run("CHECK", conf, pod, ifname="net1")
    assert done.status == 0, done
    done = node.delete(conf, pod, ifname="net1")
    assert "level=warning" not in done.stderr
    assert files(node) == []


def test_a_late_del_without_a_namespace(node: Node) -> None:
    """A late DEL without CNI_NETNS keeps a VF that sriov-cni has since attached to another pod."""
    pod, other = node.pod(), node.pod()
    path = attach_as_sriov_cni(node, pod)
    content = path.read_text()
    node.delete(conf_of(node), pod, ifname="net1")
    attach_as_sriov_cni(node, other)
    path.write_text(content)
    there, before = node.link("net1", other), files(node)
    done = node.run("DEL", conf_of(node), pod, ifname="net1", env={"CNI_NETNS": ""})
    assert done.status == 0, done
    assert node.link("net1", other) == there
    assert files(node) == [name for name in before if name != path.name]
    node.delete(conf_of(node), other, ifname="net1")
    assert files(node) == []
