"""A real runtime executes the plugin: containerd, with its own ideas of container IDs and namespaces."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from harness.card import IN_LAB, RECORDS, Card, Node, differences
from lab import containerd
from lab.containerd import Containerd


@pytest.fixture
def runtime(node: Node) -> Iterator[Containerd]:
    if not IN_LAB:
        pytest.skip("would replace /etc/cni/net.d: only in the lab")
    if not shutil.which("containerd"):
        pytest.skip("needs containerd")
    with containerd.running(node.root / "containerd") as running:
        yield running


def test_a_container_with_a_vf(node: Node, card: Card, runtime: Containerd) -> None:
    before = card.state()
    vf = card.vf(2)
    mac = "02:5f:00:00:00:01"
    plugin = {"type": "sriov", "master": card.pf, "vf": vf.number, "vlan": 100, "mac": mac}
    plugin["ipam"] = node.host_local("10.79.0.0/24", delegate=True)
    containerd.network({"cniVersion": "1.0.0", "name": node.name, "plugins": [plugin]})
    runtime.start("guest")
    try:
        assert runtime.exec("guest", ("cat", "/sys/class/net/eth0/address")).strip() == mac
        shown = runtime.exec("guest", ("ip", "-4", "addr", "show", "dev", "eth0"))
        assert node.leases() == ["10.79.0.2"]
        assert "inet 10.79.0.2/24" in shown
        assert card.vlan(vf.number) == 100
        assert card.vf(vf.number).netdev == ""
        assert vf.pci in runtime.exec("guest", ("ls", "-l", "/sys/class/net/eth0/device"))
        assert any(name.name.startswith(f"{vf.pci}~") for name in RECORDS.iterdir())
    finally:
        runtime.remove("guest")
    assert node.leases() == []
    assert not any(name.name.startswith(f"{vf.pci}~") for name in RECORDS.iterdir())
    assert not differences(before, card.state())
