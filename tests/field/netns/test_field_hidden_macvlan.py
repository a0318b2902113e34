"""A macvlan in another namespace on top of a VF: the kernel may still be removing that of another pod."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from harness import busy_driver
from harness.veth import Node


@pytest.fixture
def hidden(node: Node) -> Iterator[str]:
    """A namespace with a macvlan on the first VF."""
    name = f"{node.host}-other"
    node.ip("netns", "add", name)
    words = (
        "link",
        "pf0v0",
        "name",
        "mv0",
        "netns",
        name,
        "type",
        "macvlan",
        "mode",
        "passthru",
        "nopromisc",
    )
    node.nip("link", "add", *words)
    yield name
    node.ip("netns", "del", name)


@pytest.mark.fresh  # the kernel removes the macvlan later
@pytest.mark.modes("resident")
def test_917_the_next_vf_is_taken(node: Node, hidden: str) -> None:
    """An ADD that met a VF with such a macvlan failed, though another VF was free."""
    pod, other = node.pod(), node.pod()
    before = node.state()
    conf = node.conf(attach="macvlan", ipam=node.host_local(delegate=False))
    node.add(conf, pod)
    assert [record.partition("~")[0] for record in node.records()] == [node.tree.pci(1)]
    assert len(node.leases()) == 1
    said = node.refused(11, "ADD", conf, other)
    assert "VF 0 of pf0 is used by the host: a device in another namespace on top of it" in said
    node.delete(conf, pod)
    assert (node.state(), node.leases()) == (before, [])


@pytest.mark.fresh
def test_917_a_named_vf(node: Node, hidden: str) -> None:
    """The error says why, and everything is undone: no other VF is taken."""
    before = node.kept()
    said = node.refused(101, "ADD", node.conf(attach="macvlan", vf=0), node.pod())
    assert said.startswith("attach macvlan: VF 0 of pf0 (pf0v0) has a device on top of it")
    assert node.kept() == before | {"pods": node.kept()["pods"]}


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBUSY], ids=errno.errorcode.get)
def test_917_a_macvlan_that_ends(node: Node, number: int) -> None:
    """An ADD for a VF whose old macvlan ended a moment later failed."""
    node.prelude = busy_driver.prelude(number, macvlan=3)
    pod, conf = node.pod(), node.conf(attach="macvlan", vf=0)
    node.add(conf, pod)
    node.prelude = "pass"
    node.delete(conf, pod)
