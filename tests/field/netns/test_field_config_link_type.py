"""Devices that are not Ethernet."""

from __future__ import annotations

import pytest

from harness.veth import Node

pytestmark = pytest.mark.modes("process")


def test_916_a_device_that_is_no_ethernet_device(node: Node) -> None:
    """An IPoIB VF was moved into the pod, and announced with half of its address."""
    name = node.tree.netdev(0)
    node.nip("link", "del", name)
    node.nip("tuntap", "add", "dev", name, "mode", "tun")
    (node.tree.sys / "class/net" / name / "type").write_text("32\n")
    said = node.refused(7, "ADD", node.conf(vf=0), node.pod())
    assert f"{name} is no Ethernet device: its link type is InfiniBand (32)" in said
    assert name in node.links()
    assert node.records() == []
