"""VFs whose driver makes no network device."""

from __future__ import annotations

import json
from typing import Any

import pytest

from harness.veth import Node


def rebind(node: Node, *indices: int, driver: str = "vfio-pci") -> None:
    for index in indices:
        node.tree.unbind(index)
        node.tree.bind(index, driver)


def test_609_by_device_id(node: Node) -> None:
    """A VF bound to vfio-pci and named by deviceID was refused with "try again", for ever."""
    rebind(node, 0)
    pod, conf = node.pod(), node.conf(master=None, deviceID=node.tree.pci(0))
    result = node.add(conf, pod)
    node.check(conf, pod, result)
    node.delete(conf, pod)
    assert node.records() == []


def test_609_none_has_a_network_device(node: Node) -> None:
    """A PF with VFs for userspace alone said "try again" as well, to a request that names none."""
    rebind(node, 0, 1)
    said = node.refused(7, "ADD", node.conf(), node.pod())
    assert "no VF of pf0 has a network device: driver vfio-pci" in said
    assert "deviceID" in said


@pytest.mark.modes("resident")
def test_610_check_of_an_attachment_of_the_sriov_cni(node: Node) -> None:
    """CHECK missed the interface of a VF that the SR-IOV CNI had given to a program: it never had one."""
    rebind(node, 0)
    pod, pci = node.pod(), node.tree.pci(0)
    original: dict[str, Any] = {"HostIFName": "", "AdminMAC": "00:00:00:00:00:00", "EffectiveMAC": ""}
    conf = node.conf(master=None, deviceID=pci)
    files = node.root / "sriov-cni"
    (files / "pci").mkdir(parents=True)
    (files / "pci" / pci).write_text(f"/run/netns/{pod}")
    (files / f"{pod}-net1").write_text(json.dumps(conf | {"OrigVfState": original, "Master": "pf0"}))
    done = node.run("CHECK", conf, pod, ifname="net1")
    assert done.status == 0, done
    done = node.delete(conf, pod, ifname="net1")
    assert "level=warning" not in done.stderr
    assert [path.name for path in files.rglob("*") if path.is_file()] == []
