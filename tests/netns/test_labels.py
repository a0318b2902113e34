"""The names of VFs without a visible PF in errors."""

from __future__ import annotations

from typing import Any

import pytest

from harness.veth import Node

pytestmark = pytest.mark.modes("resident")


@pytest.fixture
def lone(node: Node) -> Node:
    """A node on which the first VF has no visible PF."""
    node.tree.hide_pf(0)
    return node


def refusal(node: Node, code: int, **more: Any) -> str:
    """Return the error of an ADD, with the VF's name shortened to VF."""
    conf = node.conf(master=None, deviceID=node.tree.pci(0), **more)
    return node.refused(code, "ADD", conf, node.pod()).replace(f"VF {node.tree.pci(0)}", "VF")


@pytest.mark.parametrize("attach", ["move", "macvlan"])
def test_an_mtu_that_is_refused(lone: Node, attach: str) -> None:
    lone.nip("link", "del", "pf0v0")
    lone.nip("link", "add", "lower", "type", "veth", "peer", "name", "lower-peer")
    lone.nip("link", "add", "link", "lower", "name", "pf0v0", "type", "macvlan")
    assert refusal(lone, 7, mtu=9000, attach=attach).startswith("mtu 9000: VF refuses it: ")


def test_a_device_on_top_that_the_host_does_not_see(lone: Node) -> None:
    macvlan = f"link add link pf0v0 name top netns {lone.pod()} type macvlan mode passthru"
    lone.nip(*macvlan.split())
    assert refusal(lone, 101, attach="macvlan").startswith("attach macvlan: VF has a device on top of it: ")


def test_a_userspace_driver_where_a_network_device_is_needed(lone: Node) -> None:
    lone.tree.unbind(0)
    lone.tree.bind(0, "vfio-pci")
    said = refusal(lone, 7, attach="macvlan")
    assert said.startswith("attach macvlan: VF has no network device: driver vfio-pci")
