"""VFs with a userspace driver: no interface in the pod, but settings, addresses, a result and a record."""

from __future__ import annotations

from typing import Any

import pytest

from harness.veth import Node

pytestmark = pytest.mark.modes("resident")

SYSFS = ("vfio-pci", "uio_pci_generic", "igb_uio", "mlx5_vfio_pci")


@pytest.mark.parametrize("driver", SYSFS)
@pytest.mark.modes("resident", "deferred")
def test_every_verb(either: Node, driver: str) -> None:
    node, pod = either, either.pod()
    node.tree.bind(0, driver)
    before = node.snapshot()
    conf = node.by_device()
    result = node.add(conf, pod)
    (interface,) = result["interfaces"]
    pci = node.tree.pci(0)
    assert interface == {"name": "eth0", "mtu": 1500, "sandbox": f"/run/netns/{pod}", "pciID": pci}
    assert result["ips"] == [{"address": "10.77.0.2/24", "gateway": "10.77.0.1", "interface": 0}]
    assert node.records() == [f"{pci}~{pod}~eth0"]
    assert node.snapshot()["pods"] == before["pods"]
    node.check(conf, pod, result)
    assert node.run("STATUS", conf).status == 0
    done = node.delete(conf, pod)
    assert "level=warning" not in done.stderr
    assert node.snapshot() == before


def test_a_namespace_that_cannot_be_opened(node: Node) -> None:
    """With a userspace driver the plugin does not open the namespace, which may be invisible to it."""
    node.tree.bind(0, "vfio-pci")
    conf, hidden = node.by_device(), {"CNI_NETNS": "/run/netns/no-such"}
    done = node.run("ADD", conf, "pod1", env=hidden)
    assert done.status == 0, done
    node.check(conf, "pod1", done.json, env=hidden)
    node.collect(conf, "pod1")
    assert len(node.records()) == 1
    node.delete(conf, "pod1", env=hidden)
    assert (node.records(), node.leases()) == ([], [])


def test_such_a_namespace_of_another_vf(node: Node) -> None:
    """A VF with a network device needs an accessible namespace."""
    said = node.refused(4, "ADD", node.by_device(), "pod1", env={"CNI_NETNS": "/run/netns/no-such"})
    assert "no-such" in said
    assert (node.records(), node.leases()) == ([], [])


def test_by_index(node: Node) -> None:
    node.tree.bind(0, "vfio-pci")
    pod, conf = node.pod(), node.by_device(deviceID=None, master="pf0", vf=0)
    assert node.add(conf, pod)["interfaces"][0]["pciID"] == node.tree.pci(0)
    node.delete(conf, pod)


def test_none_is_chosen_unasked(node: Node) -> None:
    """Without a named VF, an ADD chooses a VF with a network device."""
    node.tree.bind(0, "vfio-pci")
    pod, other = node.pod(), node.pod()
    conf = node.by_device(deviceID=None, master="pf0")
    assert node.add(conf, pod)["interfaces"][0]["pciID"] == node.tree.pci(1)
    assert "no VF free on pf0" in node.refused(11, "ADD", conf, other)


def test_one_vf_for_one_pod(node: Node) -> None:
    node.tree.bind(0, "vfio-pci")
    pod, other, conf = node.pod(), node.pod(), node.by_device()
    node.add(conf, pod)
    assert f"it belongs to container {pod}, eth0" in node.refused(11, "ADD", conf, other)
    node.delete(conf, pod)
    node.add(conf, other)


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"attach": "macvlan"}, "attach macvlan"),
        ({"cores": [1]}, "cores"),
        ({"ipam": {"type": "dhcp"}}, "ipam dhcp"),
    ],
)
def test_what_needs_a_network_device(node: Node, more: dict[str, Any], word: str) -> None:
    node.tree.bind(0, "vfio-pci")
    before, pod = node.snapshot(), node.pod()
    said = node.refused(7, "ADD", node.by_device(**more), pod)
    assert said.startswith(f"{word}: VF 0 of pf0")
    assert "vfio-pci" in said
    assert node.snapshot()["records"] == before["records"] == []


def test_an_mtu_is_ignored(node: Node) -> None:
    """The key ``mtu`` is ignored with a warning; the Kubernetes SR-IOV CNI ignores it for every VF."""
    node.tree.bind(0, "vfio-pci")
    done = node.run("ADD", node.by_device(mtu=9000), node.pod())
    assert done.json["interfaces"][0]["mtu"] == 1500
    assert "mtu is ignored" in done.stderr


def test_a_setting_that_the_pf_refuses(node: Node) -> None:
    """The ADD is undone if the PF refuses a setting, as a veth PF does."""
    node.tree.bind(0, "vfio-pci")
    pod = node.pod()
    assert "VF 0 of pf0" in node.refused(100, "ADD", node.by_device(vlan=7), pod)
    assert (node.records(), node.leases()) == ([], [])


def test_gc(node: Node) -> None:
    node.tree.bind(0, "vfio-pci")
    conf, pod = node.by_device(), node.pod()
    node.add(conf, pod)
    node.ip("netns", "del", pod)
    node.collect(conf)
    node.homed()
    assert (node.records(), node.leases()) == ([], [])


@pytest.mark.modes("process")
def test_a_vf_that_was_made_anew(node: Node) -> None:
    """CHECK and DEL detect a recreated VF; its settings are the operator's, and are not restored."""
    node.tree.bind(0, "vfio-pci")
    conf, pod = node.by_device(), node.pod()
    result = node.add(conf, pod)
    device = node.tree.device(0)
    device.rename(device.with_name("old"))
    device.mkdir()
    said = node.refused(103, "CHECK", conf | {"prevResult": result}, pod)
    assert "made anew" in said
    assert "made anew" in node.delete(conf, pod).stderr
    assert (node.records(), node.leases()) == ([], [])


@pytest.mark.modes("process")
def test_none_has_a_network_device(node: Node) -> None:
    """An ADD without a named VF fails with code 7 if all VFs of the PF have a userspace driver."""
    for index in (0, 1):
        node.tree.bind(index, "vfio-pci")
    said = node.refused(7, "ADD", node.conf(), node.pod())
    assert "no VF of pf0 has a network device: driver vfio-pci" in said
    assert "deviceID" in said
