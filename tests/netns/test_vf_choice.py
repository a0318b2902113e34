"""The choice of the VF for an ADD: no VF that the host uses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from harness.veth import Node

pytestmark = pytest.mark.modes("resident")

ADVERTISED = "address add 2001:db8::7/64 dev pf0v0 nodad valid_lft 1000 preferred_lft 1000"
LOCAL = "address add fe80::7/64 dev pf0v0 nodad"
# Uses of a VF by the host, by the text of the refusal.
USES = {
    "address 192.0.2.5/24": ["address add 192.0.2.5/24 dev pf0v0"],
    "address 2001:db8::5/64": ["address add 2001:db8::5/64 dev pf0v0 nodad"],
    "route 0.0.0.0/0": ["link set pf0v0 up", "route add default dev pf0v0"],
    "route 2001:db8::/32": ["link set pf0v0 up", "-6 route add 2001:db8::/32 dev pf0v0"],
    "br0 on top of it": ["link add br0 type bridge", "link set pf0v0 master br0"],
    "mv0 on top of it": ["link add link pf0v0 name mv0 type macvlan"],
}


def use(node: Node, kind: str) -> None:
    """Use the first VF's device in the host; add the links of upper devices to the test's sysfs."""
    for line in USES[kind]:
        node.nip(*line.split())
    if kind.endswith("on top of it"):
        above = kind.split(maxsplit=1)[0]
        (node.tree.sys / "class/net/pf0v0" / f"upper_{above}").symlink_to(f"../{above}")


def recorded_pf(node: Node) -> object:
    return json.loads(node.record().read_text())["pf"]


def host_state(node: Node) -> str:
    """Return the host's addresses, routes and links of the first VF's device."""
    shown = [["-o", "address"], ["route"], ["-6", "route", "show", "proto", "boot"], ["-o", "link"]]
    lines = [line for words in shown for line in node.nip(*words).splitlines()]
    return "\n".join(line for line in lines if "pf0v0" in line and "fe80::" not in line)


@pytest.mark.parametrize("kind", USES)
def test_a_vf_that_the_host_uses_is_not_the_first_choice(node: Node, kind: str) -> None:
    """An ADD skips a VF that the host uses."""
    use(node, kind)
    before = host_state(node)
    assert node.add(node.conf(cniVersion="1.1.0"), node.pod())["interfaces"][0]["pciID"] == node.tree.pci(1)
    said = node.refused(11, "ADD", node.conf(), node.pod())
    assert f"VF 0 of pf0 is used by the host: {kind}" in said
    assert host_state(node) == before


@pytest.mark.parametrize("by", ["vf", "deviceID"])
@pytest.mark.parametrize("kind", USES)
def test_a_named_vf_that_the_host_uses_is_refused(node: Node, kind: str, by: str) -> None:
    """An ADD refuses a named VF that the host uses, and the host keeps its configuration."""
    use(node, kind)
    before, snapshot = host_state(node), node.snapshot()
    conf = node.conf(vf=0) if by == "vf" else node.conf(deviceID=node.tree.pci(0))
    said = node.refused(101, "ADD", conf, node.pod())
    assert f"is used by the host: {kind}" in said
    assert "VF 0 of pf0" in said or "vf 0 of pf0" in said
    assert host_state(node) == before
    assert node.snapshot() == snapshot | {"pods": node.snapshot()["pods"]}


# The effects of router advertisements, and of network managers, which bring up every device.
NO_USES = {
    "advertised": [
        "link set pf0v0 up",
        ADVERTISED,
        LOCAL,
        "-6 route add default via fe80::1 dev pf0v0 proto ra",
    ],
    "up": ["link set pf0v0 up", "address add 169.254.7.7/16 dev pf0v0 scope link", LOCAL],
}


@pytest.mark.parametrize("kind", NO_USES)
def test_a_vf_that_the_host_does_not_use_is_free(either: Node, kind: str) -> None:
    for line in NO_USES[kind]:
        either.nip(*line.split())
    added = either.add(either.conf(cniVersion="1.1.0"), either.pod())
    assert added["interfaces"][0]["pciID"] == either.tree.pci(0)


def test_a_route_beyond_the_advertised_ones_is_a_use(node: Node) -> None:
    for line in ("link set pf0v0 up", ADVERTISED, "-6 route add 2001:db8:1::/48 dev pf0v0"):
        node.nip(*line.split())
    said = node.refused(101, "ADD", node.conf(vf=0), node.pod())
    assert "is used by the host: route 2001:db8:1::/48" in said


def test_status_sees_that_the_host_uses_every_vf(node: Node) -> None:
    """STATUS fails if the host uses every VF, since each ADD would fail."""
    conf = node.conf(cniVersion="1.1.0")
    node.nip("address", "add", "192.0.2.5/24", "dev", "pf0v0")
    assert node.run("STATUS", conf).status == 0
    node.nip("address", "add", "192.0.2.6/24", "dev", "pf0v1")
    assert "usable VF" in node.refused(50, "STATUS", conf)


@pytest.mark.parametrize("masters", [["pf0", "missing"], ["missing", "pf0"], ["lo", "pf0"]])
def test_a_missing_master_is_skipped(node: Node, masters: list[str]) -> None:
    """ADD and STATUS skip PFs in ``master`` that a node lacks, so nodes can share a configuration."""
    conf = node.conf(cniVersion="1.1.0", master=masters)
    assert node.run("STATUS", conf).status == 0
    done = node.run("ADD", conf, node.pod())
    assert (done.status, done.json["interfaces"][0]["pciID"]) == (0, node.tree.pci(0)), done
    other = next(name for name in masters if name != "pf0")
    log = node.root / "server.log"
    said = done.stderr + (log.read_text() if log.exists() else "")
    assert f"master '{other}' is no PF with SR-IOV" in said
    done = node.run("ADD", conf | {"vf": 1}, node.pod())
    assert done.status == 0, done


@pytest.mark.parametrize("more", [{"master": ["missing"]}, {"master": ["missing", "lo"]}, {"vf": 9}], ids=str)
def test_add_and_status_refuse_in_the_same_words(node: Node, more: dict[str, Any]) -> None:
    """ADD and STATUS fail for the same configurations, with the same message."""
    conf = node.conf(cniVersion="1.1.0", **more)
    added = node.run("ADD", conf, node.pod())
    status = node.run("STATUS", conf)
    assert (added.json["code"], status.json["code"]) == (7, 50)
    assert added.json["msg"] == status.json["msg"] != ""
    assert "vf" not in more or added.json["msg"] == "vf 9: pf0 has no such VF"


@pytest.mark.parametrize("ipam", ["", "txipam"])
@pytest.mark.parametrize("master", ["missing", "lo", ["missing", "lo"]], ids=str)
def test_the_device_plugin_decides(node: Node, master: str | list[str], ipam: str) -> None:
    """With the device plugin's deviceID, ``master`` may be wrong: the SR-IOV CNI ignores it as well."""
    more = {"ipam": node.other_ipam(ipam)} if ipam else {}
    pci, pod = node.tree.pci(1), node.pod()
    conf = node.conf(cniVersion="1.1.0", master=master, runtimeConfig={"deviceID": pci}, **more)
    done = node.run("ADD", conf, pod)
    assert (done.status, done.json["interfaces"][0]["pciID"]) == (0, pci), done
    node.check(conf, pod, done.json)
    node.delete(conf, pod)
    assert node.records() == []


@pytest.mark.parametrize("altname", ["enp1s0f0np0", "enp129s0f1np1-of-the-second-card"])
def test_an_alternative_name(either: Node, altname: str) -> None:
    """``master`` can be an alternative name of the PF; the record has the PF's name."""
    node = either
    node.nip("link", "property", "add", "dev", "pf0", "altname", altname)
    conf = node.conf(cniVersion="1.1.0", master=altname)
    assert node.run("STATUS", conf).status == 0
    pod = node.pod()
    assert node.add(conf, pod)["interfaces"][0]["pciID"] == node.tree.pci(0)
    assert recorded_pf(node) == "pf0"
    node.delete(conf, pod)
    conf = node.conf(cniVersion="1.1.0", master=["missing", altname], deviceID=node.tree.pci(1))
    assert node.add(conf, pod)["interfaces"][0]["pciID"] == node.tree.pci(1)


def representor(node: Node, name: str, port: str) -> None:
    """Give the PF's function a second network device, as on a card in switchdev mode."""
    node.tree.add_netdev(None, name)
    (node.tree.sys / "class/net" / name / "phys_port_name").write_text(f"{port}\n")
    node.nip("link", "add", name, "type", "veth", "peer", "name", f"{name}-p")


@pytest.mark.parametrize("port", ["pf0vf0", "pf0sf88", "c1pf0vf3", "p0pf0vf1", "pf0"])
def test_the_uplink_and_no_representor(node: Node, port: str) -> None:
    """With deviceID alone the PF is the uplink, although a representor's name sorts first."""
    representor(node, "aaa0", port)
    (node.tree.sys / "class/net/pf0/phys_port_name").write_text("p0\n")
    node.add(node.conf(master=None, deviceID=node.tree.pci(0)), node.pod())
    assert recorded_pf(node) == "pf0"


def test_the_first_of_two_ports(node: Node) -> None:
    """With deviceID alone the PF is the port with the lowest number, although another name sorts first."""
    representor(node, "aaa0", "")
    (node.tree.sys / "class/net/aaa0/dev_port").write_text("1\n")
    (node.tree.sys / "class/net/pf0/dev_port").write_text("0\n")
    node.add(node.conf(master=None, deviceID=node.tree.pci(0)), node.pod())
    assert recorded_pf(node) == "pf0"


@pytest.mark.parametrize("master", ["pf0", "aaa0"])
def test_the_master_that_is_named(node: Node, master: str) -> None:
    """The device that ``master`` names is the PF, although another one of its function sorts first."""
    representor(node, "aaa0", "")
    node.add(node.conf(master=master, deviceID=node.tree.pci(0)), node.pod())
    assert recorded_pf(node) == master


@pytest.mark.modes("process")
@pytest.mark.parametrize("attach", ["move", "macvlan"])
def test_a_device_that_is_no_ethernet_device(node: Node, attach: str) -> None:
    """An ADD refuses a VF that is no Ethernet device, for example IPoIB."""
    name = node.tree.netdev(0)
    node.nip("link", "del", name)
    node.nip("tuntap", "add", "dev", name, "mode", "tun")
    (node.tree.sys / "class/net" / name / "type").write_text("32\n")
    said = node.refused(7, "ADD", node.conf(vf=0, attach=attach), node.pod())
    assert f"{name} is no Ethernet device: its link type is InfiniBand (32)" in said
    assert name in node.links()
    assert node.records() == []
