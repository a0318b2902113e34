"""Which VF an ADD may take: none that the host uses."""

from __future__ import annotations

import pytest

from harness.veth import Node

pytestmark = pytest.mark.modes("resident")

USES = {
    "address": ["address add 192.0.2.5/24 dev pf0v0"],
    "IPv6 address": ["address add 2001:db8::5/64 dev pf0v0 nodad"],
    "route": ["link set pf0v0 up", "route add default dev pf0v0"],
    "IPv6 route": ["link set pf0v0 up", "-6 route add 2001:db8::/32 dev pf0v0"],
    "bridge port": ["link add br0 type bridge", "link set pf0v0 master br0"],
    "macvlan on top": ["link add link pf0v0 name mv0 type macvlan"],
}
WORDS = {
    "address": "address 192.0.2.5/24",
    "IPv6 address": "address 2001:db8::5/64",
    "route": "route 0.0.0.0/0",
    "IPv6 route": "route 2001:db8::/32",
    "bridge port": "br0 on top of it",
    "macvlan on top": "mv0 on top of it",
}


def use(node: Node, kind: str) -> None:
    """Use the first VF's device; the tree gets the link that sysfs has for each device on top."""
    for line in USES[kind]:
        node.nip(*line.split())
    if kind.endswith(("port", "top")):
        above = WORDS[kind].split()[0]
        (node.tree.sys / "class/net/pf0v0" / f"upper_{above}").symlink_to(f"../{above}")


def host_state(node: Node) -> str:
    """All that the host has of the first VF's device."""
    shown = [["-o", "address"], ["route"], ["-6", "route", "show", "proto", "boot"], ["-o", "link"]]
    lines = [line for words in shown for line in node.nip(*words).splitlines()]
    return "\n".join(line for line in lines if "pf0v0" in line and "fe80::" not in line)


@pytest.mark.parametrize("kind", USES)
def test_501_a_vf_that_the_host_uses_is_not_the_first_choice(node: Node, kind: str) -> None:
    """A pod got the VF that carried the host's default route, because that was the first VF of the PF."""
    use(node, kind)
    before = host_state(node)
    assert node.add(node.conf(cniVersion="1.1.0"), node.pod())["interfaces"][0]["pciID"] == node.tree.pci(1)
    said = node.refused(11, "ADD", node.conf(), node.pod())
    assert f"VF 0 of pf0 is used by the host: {WORDS[kind]}" in said
    assert host_state(node) == before


@pytest.mark.parametrize("by", ["vf", "deviceID"])
@pytest.mark.parametrize("kind", USES)
def test_501_a_named_vf_that_the_host_uses_is_refused(node: Node, kind: str, by: str) -> None:
    """A VF that was named went to the pod, and the host lost an address without a word."""
    use(node, kind)
    before, snapshot = host_state(node), node.snapshot()
    conf = node.conf(vf=0) if by == "vf" else node.conf(deviceID=node.tree.pci(0))
    said = node.refused(101, "ADD", conf, node.pod())
    assert f"is used by the host: {WORDS[kind]}" in said
    assert "VF 0 of pf0" in said or "vf 0 of pf0" in said
    assert host_state(node) == before
    assert node.snapshot() == snapshot | {"pods": node.snapshot()["pods"]}


def test_501_router_advertisements_are_no_use(either: Node) -> None:
    """Where a router advertises a prefix, each VF that is up has an address and routes from it."""
    for line in (
        "link set pf0v0 up",
        "-6 address add 2001:db8::7/64 dev pf0v0 nodad valid_lft 1000 preferred_lft 1000",
        "-6 address add fe80::7/64 dev pf0v0 nodad",
        "-6 route add default via fe80::1 dev pf0v0 proto ra",
    ):
        either.nip(*line.split())
    added = either.add(either.conf(cniVersion="1.1.0"), either.pod())
    assert added["interfaces"][0]["pciID"] == either.tree.pci(0)


def test_501_a_route_beyond_the_advertised_ones_is_a_use(node: Node) -> None:
    for line in (
        "link set pf0v0 up",
        "-6 address add 2001:db8::7/64 dev pf0v0 nodad valid_lft 1000 preferred_lft 1000",
        "-6 route add 2001:db8:1::/48 dev pf0v0",
    ):
        node.nip(*line.split())
    said = node.refused(101, "ADD", node.conf(vf=0), node.pod())
    assert "is used by the host: route 2001:db8:1::/48" in said


def test_501_a_vf_that_is_merely_up_is_free(either: Node) -> None:
    """Network managers bring every device up, which gives it a link-local address and nothing else."""
    either.nip("link", "set", "pf0v0", "up")
    either.nip("address", "add", "169.254.7.7/16", "dev", "pf0v0", "scope", "link")
    either.nip("address", "add", "fe80::7/64", "dev", "pf0v0", "nodad")
    added = either.add(either.conf(cniVersion="1.1.0"), either.pod())
    assert added["interfaces"][0]["pciID"] == either.tree.pci(0)


def test_501_status_sees_that_the_host_uses_every_vf(node: Node) -> None:
    """STATUS said healthy while the host used the only VFs, so that every ADD failed."""
    conf = node.conf(cniVersion="1.1.0")
    node.nip("address", "add", "192.0.2.5/24", "dev", "pf0v0")
    assert node.run("STATUS", conf).status == 0
    node.nip("address", "add", "192.0.2.6/24", "dev", "pf0v1")
    assert "usable VF" in node.refused(50, "STATUS", conf)
