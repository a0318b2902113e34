"""Configurations and attachments of sriov-cni, the Kubernetes project's plugin, on a real card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.card import Card, Node, differences
from harness.pod import ip, link

MAC = "02:5f:00:00:00:21"
VF = 1


def test_the_defaults_of_the_operator(node: Node, card: Card) -> None:
    """Settings that the PF has already are not sent: igb refuses each link state and reports "auto"."""
    pod = node.pod()
    more = {"vlan": 0, "vlanQoS": 0, "vlanProto": "802.1q", "spoofchk": "on", "trust": "off"}
    conf = node.conf(vf=VF, link_state="auto", min_tx_rate=0, max_tx_rate=0, **more)
    before = card.state()
    result = node.add(conf, pod)
    node.check(conf, pod, result)
    assert "level=warning" not in node.delete(conf, pod).stderr
    assert not differences(before, card.state())


def attach_as_sriov_cni(node: Node, card: Card, pod: str, directory: Path) -> dict[str, Any]:
    """Execute the steps of sriov-cni's ADD in its order, with its files; return the configuration."""
    vf = card.vf(VF)
    held, own = card.on_pf(VF), link(vf.netdev)
    original = {
        "HostIFName": vf.netdev,
        "SpoofChk": held["spoofchk"],
        "Trust": held["trust"],
        "AdminMAC": held["address"],
        "EffectiveMAC": own["address"],
        **dict.fromkeys(("Vlan", "VlanQoS", "MinTxRate", "MaxTxRate", "LinkState"), 0),
        "VlanProto": 33024,
        "MTU": own["mtu"],
    }
    card.set(VF, "vlan", "100", "qos", "3")
    card.set(VF, "mac", MAC)
    card.set(VF, "spoofchk", "off")
    card.set(VF, "trust", "on")
    ip("link", "set", vf.netdev, "netns", pod, "name", "net1")
    ip("-n", pod, "link", "set", "net1", "address", MAC)
    ip("-n", pod, "link", "set", "net1", "up")
    asked = {"vlan": 100, "vlanQoS": 3, "spoofchk": "off", "trust": "on"}
    conf = node.conf(name="red", master=None, deviceID=vf.pci, **asked)
    more = {"OrigVfState": original, "Master": card.pf, "MAC": MAC, "VFID": VF, "vlanProto": "802.1q"}
    (directory / "pci").mkdir()
    (directory / "pci" / vf.pci).write_text(f"/run/netns/{pod}")
    (directory / f"{pod}-net1").write_text(json.dumps(conf | more))
    return conf


@pytest.mark.parametrize("admin", ["", "02:5f:00:00:00:7a"])
@pytest.mark.parametrize("attach", ["move", "macvlan"])
@pytest.mark.parametrize("undone", [False, True])
def test_a_trusted_pod_changes_its_mac(node: Node, card: Card, admin: str, attach: str, undone: bool) -> None:
    """The DEL restores the PF's MAC of the VF, although the ADD requested no MAC.

    A trusted pod's change of its MAC also changes the PF's. The operator may have set a MAC that the VF does
    not use. The pod may have restored the MAC of its device.
    """
    if admin:
        card.set(VF, "mac", admin)
    before, own, pod = card.on_pf(VF), link(card.vf(VF).netdev)["address"], node.pod()
    conf = node.conf(vf=VF, trust="on", attach=attach, ipam=None)
    node.add(conf, pod)
    ip("-n", pod, "link", "set", "eth0", "address", "02:5f:00:00:00:77")
    assert card.on_pf(VF)["address"] == "02:5f:00:00:00:77"
    if undone:
        ip("-n", pod, "link", "set", "eth0", "address", own)
    node.delete(conf, pod)
    assert (card.on_pf(VF), link(card.vf(VF).netdev)["address"]) == (before, own)
    if admin:
        card.restore_mac(VF, own)


@pytest.mark.modes("process")  # the shared server reads sriov-cni's files in the default directory
def test_an_attachment_of_the_sriov_cni(node: Node, card: Card, tmp_path: Path) -> None:
    before = card.state()
    pod = node.pod()
    conf = attach_as_sriov_cni(node, card, pod, tmp_path)
    assert (card.vlan(VF), link("net1", pod)["address"]) == (100, MAC)
    more: dict[str, Any] = {"ifname": "net1", "env": {"SRIOV_FAST_SRIOV_CNI": str(tmp_path)}}
    assert node.run("CHECK", conf, pod, **more).status == 0
    assert "level=warning" not in node.delete(conf, pod, **more).stderr
    assert not differences(before, card.state())
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []
