"""VFs without a visible PF, as in a virtual machine: they move, but without settings of the PF."""

from __future__ import annotations

import json
from typing import Any

import pytest

from harness.veth import Node

pytestmark = pytest.mark.modes("resident")


@pytest.fixture
def lone(either: Node) -> Node:
    """A node on which the first VF has no visible PF."""
    either.tree.hide_pf(0)
    return either


SF = "mlx5_core.sf.4"


def make_subfunction(lone: Node) -> None:
    """Replace the first VF by an auxiliary device, a subfunction of a card."""
    bus = lone.tree.sys / "bus/auxiliary/devices"
    bus.mkdir(parents=True)
    lone.tree.device(0).rename(lone.tree.device(0).with_name(SF))
    (bus / SF).symlink_to(lone.tree.device(0).with_name(SF))
    (bus / SF / "class").unlink()
    name = lone.tree.netdev(0)
    (lone.tree.sys / "class/net" / name).unlink()
    (lone.tree.sys / "class/net" / name).symlink_to(bus / SF / "net" / name)


@pytest.mark.parametrize("attach", ["move", "macvlan"])
@pytest.mark.parametrize("subfunction", [False, True])
def test_every_verb(lone: Node, attach: str, subfunction: bool) -> None:
    node, before, pod = lone, lone.state(), lone.pod()
    path, pci = node.root / "net1-device", node.tree.pci(0)
    more = {"runtimeConfig": {"CNIDeviceInfoFile": str(path)}}
    if subfunction:
        make_subfunction(node)
        more = {"deviceID": SF}
    conf = node.by_device(attach=attach, mtu=1400, vlan=0, vlanQoS=0, max_tx_rate=0, **more)
    result = node.add(conf, pod)
    if subfunction:
        assert "pciID" not in result["interfaces"][0]
    else:
        assert result["interfaces"][0]["pciID"] == pci
        assert json.loads(path.read_text())["pci"] == {"pci-address": pci}
    assert node.records() == [f"{SF if subfunction else pci}~{pod}~eth0"]
    assert node.addresses("eth0", pod) == ["10.77.0.2/24"]
    node.check(conf, pod, result)
    assert node.run("STATUS", conf).status == 0
    assert "it belongs to container" in node.refused(11, "ADD", conf, node.pod())
    done = node.delete(conf, pod)
    assert "level=warning" not in done.stderr
    assert (node.state(), node.records(), node.drafts(), node.leases()) == (before, [], [], [])
    assert not path.exists()


@pytest.mark.parametrize(
    "more",
    [{"vlan": 7, "vlanQoS": 1}, {"mac": "02:00:00:00:00:09"}, {"spoofchk": "off"}, {"max_tx_rate": 10}],
)
def test_a_setting_of_the_pf(lone: Node, more: dict[str, Any]) -> None:
    said = lone.refused(7, "ADD", lone.by_device(**more), lone.pod())
    keys = "vlan, qos" if "vlan" in more else next(iter(more))
    assert said.startswith(f"{keys}: the PF of {lone.tree.pci(0)} is not visible here")
    assert (lone.records(), lone.leases()) == ([], [])


def test_with_a_userspace_driver(lone: Node) -> None:
    node, pod, conf = lone, lone.pod(), lone.by_device()
    node.tree.bind(0, "vfio-pci")
    result = node.add(conf, pod)
    shown = {"name": "eth0", "sandbox": f"/run/netns/{pod}", "pciID": node.tree.pci(0)}
    assert result["interfaces"] == [shown]
    node.check(conf, pod, result)
    node.delete(conf, pod)
    assert (node.records(), node.leases()) == ([], [])


@pytest.mark.modes("resident")
def test_what_is_no_lone_vf(lone: Node) -> None:
    """An ADD refuses a PF, a card that the host uses, and a device that is no network card."""
    node, pod = lone, lone.pod()
    said = node.refused(7, "ADD", node.by_device(deviceID=node.tree.pf_pci), pod)
    assert "no VF of a PF here" in said
    assert "no VF of a PF here" in node.refused(7, "ADD", node.by_device(master="pf0"), pod)
    node.nip("address", "add", "192.0.2.1/24", "dev", node.tree.netdev(0))
    assert "is used by the host" in node.refused(101, "ADD", node.by_device(), pod)
    (node.tree.device(0) / "class").write_text("0x010802\n")
    assert "no VF of a PF here" in node.refused(7, "ADD", node.by_device(), pod)


@pytest.mark.modes("resident")
def test_what_an_auxiliary_device_cannot_do(lone: Node) -> None:
    node, pod = lone, lone.pod()
    make_subfunction(node)
    said = node.refused(7, "ADD", node.by_device(deviceID=SF, vlan=7), pod)
    assert f"the PF of {SF} is not visible here" in said
    assert "auxiliary device" in node.refused(7, "ADD", node.by_device(deviceID=SF, cores=[1]), pod)
    assert "mlx5_core.sf.5" in node.refused(7, "ADD", node.by_device(deviceID="mlx5_core.sf.5"), pod)
    for wrong in ("../x.sf.4", "a.b.c", "mlx5_core.sf", "mlx5_core.sf.4/", "m~x.sf.4"):
        assert "not a PCI address" in node.refused(7, "ADD", node.by_device(deviceID=wrong), pod)
    assert (node.records(), node.leases()) == ([], [])
