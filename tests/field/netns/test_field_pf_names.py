"""PFs with several names, and PFs with several network devices."""

from __future__ import annotations

import pytest

from harness.veth import Node

pytestmark = pytest.mark.modes("resident")

LONG = "enp129s0f1np1-of-the-second-card"


@pytest.mark.parametrize("altname", ["enp1s0f0np0", LONG])
def test_504_an_alternative_name(node: Node, altname: str) -> None:
    """A master that named the PF by one of its alternative names was said not to exist."""
    node.nip("link", "property", "add", "dev", "pf0", "altname", altname)
    conf = node.conf(cniVersion="1.1.0", master=altname)
    assert node.run("STATUS", conf).status == 0
    pod = node.pod()
    assert node.add(conf, pod)["interfaces"][0]["pciID"] == node.tree.pci(0)
    assert '"pf":"pf0"' in node.record().read_text().replace(" ", "")
    node.delete(conf, pod)
    conf = node.conf(cniVersion="1.1.0", master=["missing", altname], deviceID=node.tree.pci(1))
    assert node.add(conf, pod)["interfaces"][0]["pciID"] == node.tree.pci(1)


def test_504_an_alternative_name_on_the_plain_backend(either: Node) -> None:
    """The same on each backend."""
    either.nip("link", "property", "add", "dev", "pf0", "altname", LONG)
    either.add(either.conf(master=LONG), either.pod())


def representor(node: Node, name: str, port: str) -> None:
    """Give the PF's function a second network device, as a card in switchdev mode has it."""
    node.tree.add_netdev(None, name)
    (node.tree.sys / "class/net" / name / "phys_port_name").write_text(f"{port}\n")
    node.nip("link", "add", name, "type", "veth", "peer", "name", f"{name}-p")


@pytest.mark.parametrize("port", ["pf0vf0", "pf0sf88", "c1pf0vf3", "p0pf0vf1", "pf0"])
def test_505_the_uplink_and_no_representor(node: Node, port: str) -> None:
    """With deviceID alone, the settings went to the representor, whose name comes first in the alphabet."""
    representor(node, "aaa0", port)
    (node.tree.sys / "class/net/pf0/phys_port_name").write_text("p0\n")
    node.add(node.conf(master=None, deviceID=node.tree.pci(0)), node.pod())
    assert '"pf":"pf0"' in node.record().read_text().replace(" ", "")


def test_505_the_first_of_two_ports(node: Node) -> None:
    """A card with two ports on one function gave the one whose name comes first."""
    representor(node, "aaa0", "")
    (node.tree.sys / "class/net/aaa0/dev_port").write_text("1\n")
    (node.tree.sys / "class/net/pf0/dev_port").write_text("0\n")
    node.add(node.conf(master=None, deviceID=node.tree.pci(0)), node.pod())
    assert '"pf":"pf0"' in node.record().read_text().replace(" ", "")


@pytest.mark.parametrize("master", ["pf0", "aaa0"])
def test_505_the_master_that_is_named(node: Node, master: str) -> None:
    """The device that ``master`` names was refused because another one of the same function comes first."""
    representor(node, "aaa0", "")
    node.add(node.conf(master=master, deviceID=node.tree.pci(0)), node.pod())
    assert f'"pf":"{master}"' in node.record().read_text().replace(" ", "")
