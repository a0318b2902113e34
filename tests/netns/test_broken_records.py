"""A broken record reserves its VF; other attachments keep working."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from harness.server import interfered, needs_strace
from harness.veth import Node, ResidentNode
from harness.waiting import wait_for

CONTENTS = {
    "nothing": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "ipam": lambda content: changed(content, request={"config": {"ipam": "x"}}),
    "owner": lambda content: changed(content, container_id="another"),
}


def changed(content: bytes, **more: Any) -> bytes:
    return json.dumps(json.loads(content) | more).encode()


def broken(node: Node, how: str = "cut") -> tuple[dict[str, Any], str, Path]:
    """Attach VF 0 and break its record; return configuration, pod and record."""
    conf, pod = node.conf(ipam=node.host_local(delegate=False)), node.pod()
    node.add(conf | {"vf": 0}, pod)
    record = node.record()
    record.write_bytes(CONTENTS[how](record.read_bytes()))
    return conf, pod, record


def works(node: Node, conf: dict[str, Any]) -> None:
    """Check that a new pod gets another VF, and that no ADD gets the VF of the broken record."""
    pod = node.pod()
    node.add(conf, pod)
    assert len({name.partition("~")[0] for name in node.records()}) == 2
    assert "free" in node.refused(11, "ADD", conf, node.pod())
    assert "free" in node.refused(11, "ADD", conf | {"vf": 0}, node.pod())
    node.delete(conf, pod)


@pytest.mark.modes("resident")
@pytest.mark.parametrize("how", CONTENTS)
def test_a_broken_record_and_the_server(node: ResidentNode, how: str) -> None:
    """The server starts, and keeps the broken record and its VF, which may be in a running pod."""
    conf, pod, record = broken(node, how)
    content, before = record.read_bytes(), node.kept()
    server = node.again()
    wait_for(lambda: "a record is broken" in server.said(), server.said())
    assert node.kept() == before
    assert record.read_bytes() == content
    works(node, conf)
    node.refused(103, "CHECK", conf | {"vf": 0}, pod)
    assert "broken" in node.refused(101, "ADD", conf, pod)
    assert record.read_bytes() == content


@pytest.mark.modes("resident")
@pytest.mark.parametrize("how", ["cut", "ipam"])
def test_gc_leaves_it_alone(either: Node, how: str) -> None:
    """GC releases the other attachments, and keeps the broken record, its VF and its address."""
    node = either
    conf, pod, record = broken(node, how)
    other = node.pod()
    node.add(conf, other)
    content, address = record.read_bytes(), node.addresses_of(pod)
    node.collect(conf)
    assert (node.records(), node.leases(), node.addresses_of(pod)) == ([record.name], ["10.77.0.2"], address)
    assert record.read_bytes() == content


@pytest.mark.modes("resident")
@pytest.mark.parametrize("how", CONTENTS)
def test_its_owners_del(either: Node, how: str) -> None:
    """The owner's DEL returns the VF to the host and frees the address; the VF stays reserved."""
    node = either
    conf, pod, record = broken(node, how)
    content = record.read_bytes()
    done = node.delete(conf, pod)
    assert "the record is broken" in done.stderr
    assert (node.leases(), node.addresses_of(pod)) == ([], "")
    assert "UP" not in node.link("eth0")["flags"]
    pci = record.name.partition("~")[0]
    assert node.records() == [f"{pci}~~~{pod}~eth0"]
    assert node.record().read_bytes() == content
    for _ in range(2):
        node.delete(conf, pod)
    node.collect(conf)
    works(node, conf)
    assert node.record().read_bytes() == content


def test_the_operator_sees_it(node: Node) -> None:
    """``doctor`` shows a broken record before and after the DEL of its owner; ``release`` refuses the VF."""
    conf, pod, _ = broken(node)
    for kept in (node.records(), [f"{node.tree.pci(0)}~~~{pod}~eth0"]):
        assert f"records: VF {node.tree.pci(0)} of {pod}/eth0" in node.operate("doctor").stdout
        assert "the record is broken" in node.operate("release", pod, "--force", status=1).stderr
        assert node.records() == kept
        node.delete(conf, pod)


@needs_strace
@pytest.mark.modes("resident")
def test_the_draft_of_a_killed_add(node: ResidentNode) -> None:
    """The upkeep removes the draft of a killed ADD unless a process holds the lock of its VF."""
    conf, pod = node.conf(vf=0), node.pod()
    node.server.stop()
    node.may_fall_back = True
    draft = str(node.run_dir / "vfs" / f".{node.tree.pci(0)}")
    done = node.run("ADD", conf, pod, wrap=interfered("rename", "signal=SIGKILL", draft))
    assert done.status in (-signal.SIGKILL, 128 + signal.SIGKILL)
    assert node.drafts() == [f".{node.tree.pci(0)}"]
    node.serve().ready()
    wait_for(lambda: not node.drafts(), "the draft stays")
