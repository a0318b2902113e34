"""VFs with a userspace driver, on a real card. vfio-pci needs an IOMMU: ``python -m lab pytest --iommu``."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.card import IN_LAB, ZERO_MAC, Card, Node
from harness.pod import links
from lab.demo_card import Vf

MAC, ADMIN = "02:5f:00:00:00:61", "02:5f:00:00:00:6a"
VF = 1
SETTINGS = {"mac": MAC, "vlan": 100, "vlanQoS": 3, "spoofchk": "off", "trust": "on"}


def bind(vf: Vf, driver: str) -> bool:
    """Bind a driver to a VF; return whether the driver has accepted the VF."""
    device = Path("/sys/bus/pci/devices", vf.pci)
    (device / "driver/unbind").write_text(vf.pci)
    (device / "driver_override").write_text(driver)
    try:
        Path("/sys/bus/pci/drivers_probe").write_text(vf.pci)
    except OSError:
        return False
    return (device / "driver").exists()


@pytest.fixture(params=["uio_pci_generic", "vfio-pci"])
def vf(request: pytest.FixtureRequest, card: Card) -> Iterator[Vf]:
    """A VF with a userspace driver."""
    if not IN_LAB:
        pytest.skip("makes all VFs anew: only in the lab")
    if subprocess.run(["modprobe", request.param], capture_output=True, check=False).returncode:
        pytest.skip(f"the kernel has no {request.param}")
    found, number = card.vf(VF), len(card.vfs())
    if request.param == "vfio-pci" and not Path("/sys/bus/pci/devices", found.pci, "iommu_group").exists():
        pytest.skip("vfio-pci needs an IOMMU: `python -m lab pytest --iommu`")
    try:
        assert bind(found, request.param), f"{request.param} does not take the VF"
        yield found
    finally:
        card.make_vfs(number)


def config(node: Node, vf: Vf, **more: Any) -> dict[str, Any]:
    base = {"cniVersion": "1.1.0", "deviceID": vf.pci, "master": None}
    return node.conf(**base | {"ipam": node.host_local()} | SETTINGS | more)


def without_warnings(node: Node, conf: dict[str, Any], pod: str) -> None:
    assert "level=warning" not in node.delete(conf, pod).stderr


def test_every_verb(node: Node, card: Card, vf: Vf) -> None:
    """All verbs work with and without a MAC from the operator.

    Without a requested MAC, the result has the PF's MAC of the VF.
    """
    for admin in (ZERO_MAC, ADMIN):
        every_verb(node, card, vf, admin)
    pod, conf = node.pod(), config(node, vf, mac=None)
    result = node.add(conf, pod)
    assert result["interfaces"][0]["mac"] == ADMIN
    node.check(conf, pod, result)
    without_warnings(node, conf, pod)
    assert card.on_pf(VF)["address"] == ADMIN


def every_verb(node: Node, card: Card, vf: Vf, admin: str) -> None:
    card.set(VF, "mac", admin)
    before, pod, conf = card.on_pf(VF), node.pod(), config(node, vf)
    result = node.add(conf, pod)
    mtu = next(item["mtu"] for item in links() if item["ifname"] == card.pf)
    shown = {"name": "eth0", "mac": MAC, "mtu": mtu, "sandbox": f"/run/netns/{pod}", "pciID": vf.pci}
    assert result["interfaces"] == [shown]
    on_pf = card.on_pf(VF)
    assert (on_pf["address"], card.vlan(VF), on_pf["spoofchk"], on_pf["trust"]) == (MAC, 100, False, True)
    node.check(conf, pod, result)
    card.set(VF, "vlan", "7", "qos", "0")
    said = node.refused(103, "CHECK", conf | {"prevResult": result}, pod)
    assert "holds vlan 7 for VF 1, not 100" in said
    without_warnings(node, conf, pod)
    assert card.on_pf(VF) == before
    assert (node.records(), node.leases()) == ([], [])


def test_a_refusal_is_undone(node: Node, igb: Card, vf: Vf) -> None:
    """An ADD undoes VLAN and MAC when igb refuses the link state. An ADD refuses another VF's MAC."""
    before = igb.on_pf(VF)
    said = node.refused(100, "ADD", config(node, vf, link_state="enable"), node.pod())
    assert f"VF {VF} of {igb.pf} ({vf.pci})" in said
    assert igb.on_pf(VF) == before
    other = igb.on_pf(VF + 1)["address"]
    assert "holds it" in node.refused(101, "ADD", config(node, vf, mac=other), node.pod())
    assert (node.records(), node.leases()) == ([], [])


def test_a_program_changes_its_mac(node: Node, card: Card, vf: Vf) -> None:
    """A DEL restores the PF's MAC after a trusted VF has changed it, although the ADD set no MAC."""
    for admin in (ZERO_MAC, ADMIN):
        card.set(VF, "mac", admin)
        before, pod, conf = card.on_pf(VF), node.pod(), config(node, vf, mac=None)
        node.add(conf, pod)
        card.set(VF, "mac", MAC)
        without_warnings(node, conf, pod)
        assert card.on_pf(VF) == before
