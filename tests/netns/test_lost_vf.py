"""VFs that cannot be found: in a namespace without a name, removed, or with another driver."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from harness.pod import rename
from harness.veth import MakeNode, Node, ResidentNode
from harness.waiting import wait_for

pytestmark = pytest.mark.modes("resident", "deferred")


def test_a_process_holds_the_namespace(either: Node) -> None:
    """A DEL finds the VF in a namespace that only a process holds."""
    node, before, pod = either, either.state(), either.pod()
    node.add(node.builtin(), pod)
    node.tree.remove_netdev(0)
    process = subprocess.Popen(["nsenter", f"--net=/run/netns/{pod}", "sleep", "300"])
    place = os.stat(f"/run/netns/{pod}").st_ino
    wait_for(
        lambda: os.stat(f"/proc/{process.pid}/ns/net").st_ino == place, "it does not enter the namespace"
    )
    try:
        (node.tree.proc / str(process.pid)).symlink_to(f"/proc/{process.pid}")
        node.ip("netns", "del", pod)
        node.delete(node.builtin(), pod)
        assert (node.state(), node.records(), node.leases()) == (before, [], [])
    finally:
        process.kill()
        process.wait()


def lost(node: Node, pod: str, conf: dict[str, Any]) -> None:
    """Delete the attachment of a lost VF; check that record and lease stay."""
    done = node.run("DEL", conf, pod)
    assert done.status == 0, done
    assert "kept until the VF is found" in done.stderr
    assert node.records() == [f"{node.tree.pci(0)}~~{pod}~eth0"]
    assert (len(node.leases()), node.locks()) == (1, [])


@contextmanager
def kept(node: Node, pod: str) -> Iterator[str]:
    """Rename a pod's namespace, so that the plugin does not find it."""
    name = f"{pod}-kept"
    node.tree.remove_netdev(0)
    rename(pod, name)
    try:
        yield name
    finally:
        node.ip("netns", "del", name)


@pytest.mark.modes
@pytest.mark.parametrize(
    ("mode", "backend", "by"),
    [
        ("resident", "cython", "DEL"),
        ("resident", "python", "ADD"),
        ("deferred", "cython", "ADD"),
        ("deferred", "cython", "GC"),
    ],
    indirect=["mode"],
)
def test_a_namespace_that_is_not_found(make_node: MakeNode, backend: str, by: str) -> None:
    """A lost VF and its address stay reserved; when the VF is back, the next request releases both."""
    node = make_node(vfs=2, backend=backend)
    before, pod, conf = node.state(), node.pod(), node.builtin()
    address = node.add(conf, pod)["ips"][0]["address"]
    with kept(node, pod) as namespace:
        lost(node, pod, conf)
        assert node.run("DEL", conf, pod).status == 0
        node.collect(conf)
        assert len(node.leases()) == 1
        other = node.pod()
        given = node.add(node.builtin(vf=1), other)["ips"][0]["address"]
        assert given != address
        assert node.run("DEL", node.builtin(vf=1), other).status == 0
        assert "not free" in node.refused(11, "ADD", conf, other)
        assert node.addresses("eth0", namespace) == [address]
        assert len(node.leases()) == 1
        # the test's sysfs does not follow a rename, and an ADD needs the device's name
        node.return_device(namespace, "dev7" if by != "ADD" else "pf0v0")
        if by == "GC":
            node.collect(conf)
            node.homed()
        else:
            if by == "ADD":
                node.add(conf, other)
            node.delete(conf, other if by == "ADD" else pod)
        assert (node.records(), node.leases(), node.state()) == ([], [], before)


@pytest.mark.modes("resident")
def test_the_server_brings_it_home(node: ResidentNode) -> None:
    """The server's upkeep releases the VF without a request."""
    before, pod = node.state(), node.pod()
    conf = node.builtin()
    node.add(conf, pod)
    with kept(node, pod) as namespace:
        lost(node, pod, conf)
        node.return_device(namespace, "dev7")
        node.again()
        node.homed()
        assert (node.state(), node.records(), node.leases()) == (before, [], [])


def test_the_delegates_gc_spares_its_address(node: Node) -> None:
    """GC lists the attachment of a lost VF as valid for the IPAM plugin."""
    pod, conf = node.pod(), node.builtin(ipam=node.host_local())
    node.add(conf, pod)
    with kept(node, pod):
        lost(node, pod, conf)
        node.collect(conf)
        assert len(node.leases()) == 1


def test_a_vf_that_really_is_gone(node: Node) -> None:
    """The address of a VF that no longer exists is released at once."""
    pod, conf = node.pod(), node.builtin()
    node.add(conf, pod)
    with kept(node, pod):
        node.tree.vanish(0)
        done = node.delete(conf, pod)
        assert "no network device any more" in done.stderr
        assert (node.records(), node.leases()) == ([], [])


@pytest.mark.modes("process")
@pytest.mark.parametrize("driver", ["vfio-pci", ""])
def test_another_driver_is_bound(either: Node, driver: str) -> None:
    """A DEL does not wait for a network device that the VF's driver does not create."""
    node, pod = either, either.pod()
    conf = node.builtin()
    node.add(conf, pod)
    node.tree.unbind(0)
    if driver:
        node.tree.bind(0, driver)
    node.ip("netns", "del", pod)
    node.prelude = "from sriov_fast.vf import find; find.RETURN_WAIT = 60"
    begin = time.monotonic()
    done = node.delete(conf, pod)
    assert time.monotonic() - begin < 30
    assert "no network device any more" in done.stderr
    assert (node.records(), node.leases()) == ([], [])
