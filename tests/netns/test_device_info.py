"""The device information file that Multus asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.veth import Node

pytestmark = pytest.mark.modes("resident")


def info_file(node: Node) -> Path:
    return node.root / "devinfo" / "cni" / "default-net1-0123_net1"


def config(node: Node, path: Path, **more: Any) -> dict[str, Any]:
    node.allow(CNIDeviceInfoFile=[node.root / "devinfo" / "cni"])
    runtime = {"deviceID": node.tree.pci(0), "CNIDeviceInfoFile": str(path)}
    return node.conf(master=None, runtimeConfig=runtime, ipam=node.host_local(delegate=False), **more)


@pytest.mark.parametrize("driver", ["", "vfio-pci"])
def test_add_and_del(node: Node, driver: str) -> None:
    if driver:
        node.tree.bind(0, driver)
    pod, path = node.pod(), info_file(node)
    conf = config(node, path)
    assert "unknown key" not in node.run("ADD", conf, pod).stderr
    addresses = {"pci-address": node.tree.pci(0), "pf-pci-address": node.tree.pf_pci}
    assert json.loads(path.read_text()) == {"type": "pci", "version": "1.1.0", "pci": addresses}
    assert path.stat().st_mode & 0o777 == 0o444
    node.delete(conf, pod)
    assert list(path.parent.iterdir()) == []


def test_the_file_of_the_device_plugin(node: Node) -> None:
    """An existing file is kept: Multus copies it from the device plugin, and removes it."""
    pod, path = node.pod(), info_file(node)
    path.parent.mkdir(parents=True)
    path.write_text('{"type":"pci","pci":{"rdma-device":"mlx5_3"}}')
    conf = config(node, path)
    node.add(conf, pod)
    assert "mlx5_3" in path.read_text()
    node.delete(conf, pod)
    assert "mlx5_3" in path.read_text()
    node.refused(100, "ADD", config(node, path, vlan=7), pod)
    assert "mlx5_3" in path.read_text()
    path.unlink()
    node.add(conf, pod)
    path.unlink()  # as Multus does
    node.delete(conf, pod)


def test_a_failed_add(node: Node) -> None:
    pod, path = node.pod(), info_file(node)
    node.refused(100, "ADD", config(node, path, vlan=7), pod)
    assert list(path.parent.iterdir()) == []
    assert (node.records(), node.leases()) == ([], [])


def test_gc(node: Node) -> None:
    pod, path = node.pod(), info_file(node)
    conf = config(node, path)
    node.add(conf, pod)
    node.collect(conf)
    assert list(path.parent.iterdir()) == []


def test_a_path_that_root_does_not_allow(node: Node, tmp_path: Path) -> None:
    """The author of a network can write runtimeConfig if the network declares no capability."""
    pod = node.pod()
    said = node.refused(7, "ADD", config(node, tmp_path / "anything"), pod)
    assert "runtimeConfig.CNIDeviceInfoFile" in said
    assert (list(tmp_path.iterdir()), node.records(), node.leases()) == ([], [], [])


def test_a_link(node: Node, tmp_path: Path) -> None:
    pod, path = node.pod(), info_file(node)
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "elsewhere")
    said = node.refused(7, "ADD", config(node, path), pod)
    assert "CNIDeviceInfoFile" in said
    assert (list(tmp_path.iterdir()), node.records(), node.leases()) == ([], [], [])


def test_rules_that_changed_since(node: Node) -> None:
    """A DEL succeeds although root no longer allows the path of the file."""
    pod, path = node.pod(), info_file(node)
    conf = config(node, path)
    node.add(conf, pod)
    node.allow(CNIDeviceInfoFile=["/nowhere"])
    done = node.run("DEL", conf, pod)
    assert (done.status, node.leases()) == (0, [])
