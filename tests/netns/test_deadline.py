"""``timeout``: a request fails with code 11 when this time is over, and an ADD is undone."""

from __future__ import annotations

import time
from typing import Any

import pytest

from harness.server import interfered, needs_strace
from harness.veth import MakeNode, Node, flocked

pytestmark = pytest.mark.modes("process", "resident")

LIMIT = 0.6
SLACK = 30.0  # seconds for processes and the undo on a busy machine; the IPAM plugin sleeps for 120
NEVER = "exec sleep 120"


def late(node: Node, command: str, conf: dict[str, Any], pod: str) -> str:
    """Execute the plugin, which must end in time with code 11; return its message."""
    began = time.monotonic()
    said = node.refused(11, command, conf, pod)
    assert LIMIT / 2 < time.monotonic() - began < LIMIT + SLACK
    return said


@pytest.mark.parametrize("kind", ["txipam", "host-local"])  # before the choice of the VF; during the move
def test_an_ipam_that_never_ends(node: Node, kind: str) -> None:
    pod = node.pod()
    conf = node.conf(timeout=LIMIT, ipam=node.other_ipam(kind, ADD=NEVER))
    before = node.kept()
    assert "has not ended after" in late(node, "ADD", conf, pod)
    assert node.calls() == ["ADD", "DEL"]
    node.settle()
    assert node.kept() == before


def test_a_del_whose_ipam_never_ends_can_be_repeated(node: Node) -> None:
    pod = node.pod()
    conf = node.conf(timeout=LIMIT, ipam=node.other_ipam("host-local", DEL=NEVER))
    node.add(node.conf(ipam=conf["ipam"]), pod)
    late(node, "DEL", conf, pod)
    assert len(node.records()) == 1
    node.other_ipam("host-local")
    node.delete(conf, pod)
    assert node.records() == []


@pytest.mark.parametrize(("command", "lock"), [("ADD", "owner"), ("DEL", "owner"), ("ADD", "vf")])
def test_a_lock_that_is_held(node: Node, command: str, lock: str) -> None:
    pod, pci = node.pod(), node.tree.pci(0)
    before = node.state()
    with flocked(node.run_dir / "locks" / {"owner": f"owner-{pod}~eth0", "vf": f"vf-{pci}"}[lock]):
        assert "not free within" in late(node, command, node.conf(timeout=LIMIT, deviceID=pci), pod)
    assert (node.state(), node.records()) == (before, [])


def test_a_store_of_addresses_that_is_locked(node: Node) -> None:
    pod = node.pod()
    conf = node.conf(timeout=LIMIT, ipam=node.host_local(delegate=False))
    node.add(conf, pod)
    node.delete(conf, pod)
    before = node.kept()
    with flocked(node.root / "ipam" / "net1" / "lock"):
        late(node, "ADD", conf, pod)
    assert node.kept() == before


@needs_strace
@pytest.mark.modes("process")
def test_a_kernel_that_answers_late(node: Node) -> None:
    """A netlink request cannot be interrupted: the ADD fails after the kernel's reply, and is undone."""
    pod = node.pod()
    conf = node.conf(timeout=1, ipam=node.host_local())
    before = node.kept()
    late = interfered("sendto,sendmsg", "delay_exit=1200000:when=4")
    assert "timeout = 1: ADD has not ended" in node.refused(11, "ADD", conf, pod, wrap=late)
    assert node.kept() == before


def test_no_limit_and_one_that_is_not_reached(node: Node) -> None:
    pod = node.pod()
    for limit in (0, 60, 59.5):
        conf = node.conf(timeout=limit, ipam=node.host_local())
        node.add(conf, pod)
        node.delete(conf, pod)


@pytest.mark.modes("resident")
def test_the_servers_default(make_node: MakeNode) -> None:
    node = make_node(vfs=2)
    node.again("--timeout", str(LIMIT))
    pod = node.pod()
    with flocked(node.run_dir / "locks" / f"owner-{pod}~eth0"):
        late(node, "ADD", node.conf(), pod)
    node.add(node.conf(timeout=0), pod)
