"""``timeout``: a request ends in that time with code 11, and an ADD is undone."""

from __future__ import annotations

import time
from typing import Any

import pytest

from harness.veth import MakeNode, Node, ResidentNode, flocked

pytestmark = pytest.mark.modes("process", "resident")

LIMIT = 0.6
SLACK = 30.0  # seconds for processes and the undo on a busy machine; what would wait does so for 120
NEVER = "[ $CNI_COMMAND = VERB ] && exec sleep 120"
GIVES = """[ $CNI_COMMAND = ADD ] && echo '{"ips":[{"address":"10.1.0.2/24"}]}'"""


def late(node: Node, command: str, conf: dict[str, Any], pod: str, limit: float = LIMIT) -> str:
    """Execute the plugin, which must end in time with code 11; return its message."""
    began = time.monotonic()
    said = node.refused(11, command, conf, pod)
    assert limit / 2 < time.monotonic() - began < limit + SLACK
    return said


@pytest.mark.parametrize("kind", ["txipam", "host-local"])  # before the choice of the VF; during the move
def test_an_ipam_that_never_ends(node: Node, kind: str) -> None:
    pod = node.pod()
    node.delegate(kind, NEVER.replace("VERB", "ADD"))
    conf = node.conf(timeout=LIMIT, ipam={"type": kind, "delegate": True})
    before = node.kept()
    assert "has not ended after" in late(node, "ADD", conf, pod)
    assert node.calls() == ["ADD", "DEL"]
    node.settle()
    assert node.kept() == before


def test_a_del_whose_ipam_never_ends_can_be_repeated(node: Node) -> None:
    pod = node.pod()
    node.delegate("host-local", GIVES)
    conf = node.conf(timeout=LIMIT, ipam={"type": "host-local", "delegate": True})
    node.add(node.conf(ipam=conf["ipam"]), pod)
    node.delegate("host-local", NEVER.replace("VERB", "DEL"))
    late(node, "DEL", conf, pod)
    assert len(node.records()) == 1
    node.delegate("host-local", "true")
    node.delete(conf, pod)
    assert node.records() == []


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_a_lock_of_the_owner_that_is_held(node: Node, command: str) -> None:
    pod = node.pod()
    before = node.state()
    with flocked(node.run_dir / "locks" / f"owner-{pod}~eth0"):
        assert "not free within" in late(node, command, node.conf(timeout=LIMIT), pod)
    assert node.state() == before


def test_a_lock_of_the_vf_that_is_held(node: Node) -> None:
    pod = node.pod()
    pci = node.tree.pci(0)
    before = node.state()
    with flocked(node.run_dir / "locks" / f"vf-{pci}"):
        conf = node.conf(timeout=LIMIT, deviceID=pci)
        assert "not free within" in late(node, "ADD", conf, pod)
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


@pytest.mark.modes("process")
def test_a_pf_that_answers_late(node: Node) -> None:
    """A message to the kernel cannot be cut; the ADD fails when it returns, and is undone."""
    node.prelude = (
        "import time; from sriov_fast.vf import attach; send = attach.configure; "
        "attach.configure = lambda *args, **more: (send(*args, **more), time.sleep(1.2))"
    )
    pod = node.pod()
    conf = node.conf(timeout=1, ipam=node.host_local())
    before = node.kept()
    assert "timeout = 1: ADD has not ended" in late(node, "ADD", conf, pod, limit=1.2)
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
    assert isinstance(node, ResidentNode)
    node.again("--timeout", str(LIMIT))
    pod = node.pod()
    with flocked(node.run_dir / "locks" / f"owner-{pod}~eth0"):
        late(node, "ADD", node.conf(), pod)
    node.add(node.conf(timeout=0), pod)
