"""The key ``rdma``: in exclusive mode the VF's RDMA device follows the VF into the pod and back."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from harness import rdma_kernel
from harness.veth import Node

NAME = "mlx5_3"


class Rdma:
    """The RDMA device of a node's first VF."""

    def __init__(self, node: Node) -> None:
        self.node, self.path = node, node.root / "rdma.json"
        (node.tree.device(0) / "infiniband" / NAME).mkdir(parents=True)
        self.host = os.stat(f"/run/netns/{node.host}").st_ino
        self.write(NAME, self.host)
        node.prelude = rdma_kernel.prelude(self.path)

    def write(self, name: str, place: int, **more: Any) -> None:
        state = {"shared": False, "refuses": 0, "devices": {"7": [name, place]}}
        self.path.write_text(json.dumps(state | more))

    def device(self) -> tuple[str, int]:
        """Return the device's name and the inode of its namespace."""
        name, place = json.loads(self.path.read_text())["devices"]["7"]
        return name, place


@pytest.fixture
def device(node: Node) -> Rdma:
    return Rdma(node)


def config(node: Node, **more: Any) -> dict[str, Any]:
    base = {"rdma": True, "vf": 0, "cniVersion": "1.1.0", "ipam": node.host_local(delegate=False)}
    return node.conf(**base | more)


def inode(pod: str) -> int:
    return Path(f"/run/netns/{pod}").stat().st_ino


@pytest.mark.parametrize("release", ["DEL", "GC"])
def test_there_and_back(device: Rdma, release: str) -> None:
    """DEL and GC return the RDMA device under its old name after a rename in the pod."""
    node, before, pod = device.node, device.node.state(), device.node.pod()
    conf = config(node)
    result = node.add(conf, pod)
    assert device.device() == (NAME, inode(pod))
    node.check(conf, pod, result)
    device.write("renamed", device.host)
    said = node.refused(103, "CHECK", conf | {"prevResult": result}, pod)
    assert f"the RDMA device {NAME} is not in the namespace" in said
    device.write("renamed", inode(pod))
    if release == "DEL":
        node.delete(conf, pod)
    else:
        node.collect(conf)
    assert (device.device(), node.state(), node.records()) == ((NAME, device.host), before, [])


def test_another_device_has_its_name(device: Rdma) -> None:
    """A DEL keeps the device's new name, with a warning, if another device has its old name."""
    node, before, pod = device.node, device.node.state(), device.node.pod()
    node.add(config(node), pod)
    devices = {"7": ["renamed", inode(pod)], "8": [NAME, device.host]}
    device.write("", 0, devices=devices)
    done = node.delete(config(node), pod)
    assert "another device has the old name of the RDMA device" in done.stderr
    assert (device.device(), node.state(), node.records()) == (("renamed", device.host), before, [])


def test_without_the_key_nothing_is_moved(device: Rdma) -> None:
    """Without the key, the RDMA device is left to the plugin ``rdma`` in the chain."""
    node, pod, conf = device.node, device.node.pod(), config(device.node, rdma=False)
    node.add(conf, pod)
    assert device.device() == (NAME, device.host)
    device.write(NAME, inode(pod))  # as the plugin ``rdma`` does
    node.delete(conf, pod)
    assert device.device() == (NAME, inode(pod))


def test_shared_mode(device: Rdma) -> None:
    node, pod, conf = device.node, device.node.pod(), config(device.node)
    device.write(NAME, device.host, shared=True)
    assert "the RDMA subsystem is in shared mode" in node.run("ADD", conf, pod).stderr
    assert device.device() == (NAME, device.host)
    node.delete(conf, pod)
    assert node.records() == []


def test_a_driver_that_refuses(device: Rdma) -> None:
    """An ADD fails if the driver does not support disassociation, which the kernel requires."""
    node, before = device.node, device.node.state()
    device.write(NAME, device.host, refuses=errno.EOPNOTSUPP)
    said = node.refused(100, "ADD", config(node), node.pod())
    assert said.startswith(f"rdma: {NAME} of VF 0 of pf0 ({node.tree.pci(0)}) cannot be moved to /run/netns/")
    assert os.strerror(errno.EOPNOTSUPP) in said
    assert (device.device(), node.state()) == ((NAME, device.host), before)
    assert (node.records(), node.leases()) == ([], [])


def test_an_add_that_fails_later(device: Rdma) -> None:
    node, before = device.node, device.node.state()
    node.delegate("broken", "exit 1")
    assert node.run("ADD", config(node, ipam={"type": "broken"}), node.pod()).status == 1
    assert (device.device(), node.state(), node.records()) == ((NAME, device.host), before, [])


@pytest.mark.parametrize("repair", ["DEL", "ADD"])
def test_a_killed_add(device: Rdma, repair: str) -> None:
    node, before, pod = device.node, device.node.state(), device.node.pod()
    conf = config(node, ipam=node.other_ipam("dhcp", ADD="kill -9 $PPID"))  # dhcp runs after the move
    assert node.run("ADD", conf, pod).status == -signal.SIGKILL
    assert device.device() == (NAME, inode(pod))
    node.other_ipam("dhcp")
    if repair == "ADD":
        node.add(conf, pod)
        assert device.device() == (NAME, inode(pod))
    node.delete(conf, pod)
    assert (device.device(), node.state(), node.records()) == ((NAME, device.host), before, [])


@pytest.mark.parametrize("names", [[], ["mlx5_3", "mlx5_4"]], ids=str)
def test_not_one_device(device: Rdma, names: list[str]) -> None:
    node, top = device.node, device.node.tree.device(0) / "infiniband"
    for path in top.iterdir():
        path.rmdir()
    for name in names:
        (top / name).mkdir()
    said = node.refused(7, "ADD", config(node), node.pod())
    assert said.startswith(f"rdma: {node.tree.pci(0)} has {', '.join(names) or 'no RDMA device here'}")
    assert (node.records(), node.leases()) == ([], [])


def test_a_macvlan_has_no_rdma_device(device: Rdma) -> None:
    said = device.node.refused(7, "ADD", config(device.node, attach="macvlan"), device.node.pod())
    assert said.startswith("rdma: with attach")
