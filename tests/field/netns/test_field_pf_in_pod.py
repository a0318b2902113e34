"""A PF that is in a pod (``pfOnly``), and the networks and commands for its VFs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from harness.veth import Node

pytestmark = pytest.mark.modes("resident")


def operate(node: Node, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the operator's command on the node."""
    line = [*node.enter(), sys.executable, "-m", "sriov_fast.cli", *words]
    environment = node.environment("", "", "", "", "")
    return subprocess.run(line, env=environment, check=True, capture_output=True, text=True, timeout=60)


@pytest.fixture
def owner(node: Node) -> Iterator[str]:
    """A pod with the PF; the tree shows what sysfs shows then."""
    pod = node.pod()
    conf = node.conf(pfOnly=True, ipam=None)
    node.add(conf, pod)
    node.tree.remove_netdev(None)
    yield pod
    node.tree.add_netdev(None, "pf0")
    node.delete(conf, pod)
    node.reindex()


@pytest.mark.parametrize("which", ["master", "masters", "vf", "deviceID"])
def test_918_a_vf_of_a_pf_in_a_pod(node: Node, owner: str, which: str) -> None:
    """The error was that of a wrong configuration, though the VF is free again when the pod ends."""
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


def test_918_status(node: Node, owner: str) -> None:
    """A node whose PF is in a pod is as healthy as one whose VFs all are in pods."""
    for more in ({}, {"deviceID": node.tree.pci(0), "master": None}):
        assert node.run("STATUS", node.conf(cniVersion="1.1.0", ipam=None, **more)).status == 0


@pytest.mark.modes("process")
def test_919_vfs_shows_the_pf(node: Node, owner: str) -> None:
    """The command said that no network card here can have VFs."""
    shown = operate(node, "vfs").stdout
    assert any(node.tree.pf_pci in line and f"{owner}/eth0" in line for line in shown.splitlines()), shown
    (pf,) = json.loads(operate(node, "vfs", "--json").stdout)
    assert (pf["pf"], pf["owner"]) == ("pf0", {"containerID": owner, "ifname": "eth0"})
