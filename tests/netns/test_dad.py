"""``enabledad``: an ADD waits until the kernel has checked the pod's IPv6 addresses for duplicates."""

from __future__ import annotations

from typing import Any

import pytest

from harness.veth import Node

pytestmark = pytest.mark.modes("resident")

ATTACH = pytest.mark.parametrize("attach", ["move", "macvlan"])
ADDRESSES = [{"address": "fd00::2/64"}, {"address": "10.9.0.2/24"}, {"address": "fd00::3/64"}]


def config(node: Node, **more: Any) -> dict[str, Any]:
    ipam = {"type": "static", "addresses": ADDRESSES}
    return node.conf(**{"ipam": ipam, "vf": 0, "enabledad": True} | more)


def shown(node: Node, pod: str) -> list[str]:
    """Return the global IPv6 addresses with their flags."""
    lines = node.ip("-o", "-6", "-n", pod, "address", "show", "dev", "eth0", "scope", "global").splitlines()
    return sorted(line.partition("inet6 ")[2].partition(" valid_lft")[0].rstrip("\\ ") for line in lines)


@ATTACH
def test_the_addresses_have_settled(either: Node, attach: str) -> None:
    node, pod = either, either.pod()
    conf = config(node, attach=attach)
    node.add(conf, pod)
    assert shown(node, pod) == ["fd00::2/64 scope global", "fd00::3/64 scope global"]
    node.delete(conf, pod)


@ATTACH
def test_a_duplicate(node: Node, attach: str) -> None:
    """Another machine on the link has one of the addresses: the error names it, and the ADD is undone."""
    pod = node.pod()
    node.nip("address", "add", "fd00::3/64", "dev", "peer0", "nodad")
    before = node.kept()
    said = node.refused(101, "ADD", config(node, attach=attach), pod)
    assert said.startswith("address fd00::3/64: another machine on the link of eth0 has it")
    node.settle()
    assert node.kept() == before


def test_the_deadline(node: Node) -> None:
    """An ADD fails if its timeout ends before duplicate address detection, which takes a second at least."""
    pod = node.pod()
    before = node.kept()
    said = node.refused(11, "ADD", config(node, timeout=0.5), pod)
    assert said.startswith(
        "address fd00::2/64, fd00::3/64: duplicate address detection on eth0 has not ended"
    )
    node.settle()
    assert node.kept() == before


def test_a_link_that_is_down(node: Node) -> None:
    """Without carrier the kernel sends no probes: the ADD succeeds after its timeout and logs the reason."""
    pod = node.pod()
    node.nip("link", "set", "peer0", "down")
    conf = config(node, timeout=0.5)
    done = node.run("ADD", conf, pod)
    assert done.status == 0, done
    assert "the link is down: addresses are checked for duplicates when it comes up" in done.stderr
    assert all("tentative" in line for line in shown(node, pod))
    node.delete(conf, pod)


@ATTACH
def test_without_the_key_nothing_waits(node: Node, attach: str) -> None:
    """Without ``enabledad`` an ADD sets its addresses without duplicate address detection."""
    pod = node.pod()
    node.nip("address", "add", "fd00::3/64", "dev", "peer0", "nodad")
    conf = config(node, attach=attach, enabledad=None)
    node.add(conf, pod)
    assert shown(node, pod) == ["fd00::2/64 scope global nodad", "fd00::3/64 scope global nodad"]
    node.delete(conf, pod)
