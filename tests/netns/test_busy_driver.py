"""A driver that refuses requests or applies them late: the plugin repeats them for at most two seconds."""

from __future__ import annotations

import errno
import os
import time
from typing import Any

import pytest

from harness import busy_driver
from harness.veth import MakeNode, Node

ERRNOS = [errno.EBUSY, errno.EAGAIN, errno.EADDRNOTAVAIL]
MAC = "02:00:00:00:aa:01"


def round_trip(node: Node, conf: dict[str, Any], *, up: bool = False) -> dict[str, Any]:
    """Attach and release a VF; return the pod's device. The DEL must restore the VF."""
    if up:
        node.nip("link", "set", "pf0v0", "up")
    before, pod = node.state(), node.pod()
    node.add(conf, pod)
    found = node.link("eth0", pod)
    node.delete(conf, pod)
    node.settle()
    assert (node.state(), node.records()) == (before, [])
    return found


BUSY = [("cython", number, attach) for number in ERRNOS for attach in ("move", "macvlan")]


@pytest.mark.parametrize(("backend", "number", "attach"), [*BUSY, ("python", errno.EBUSY, "move")])
def test_bringing_up(make_node: MakeNode, backend: str, number: int, attach: str) -> None:
    """``iavf`` refuses IFF_UP with EBUSY until the reset of the VF has ended."""
    node = make_node(vfs=2, backend=backend)
    node.prelude = busy_driver.prelude(number, up=4)
    link = round_trip(node, node.builtin(attach=attach, mtu=1400), up=True)
    assert ("UP" in link["flags"], link["mtu"]) == (True, 1400)


@pytest.mark.parametrize("attach", ["move", "macvlan"])
@pytest.mark.parametrize("number", ERRNOS, ids=errno.errorcode.get)
def test_settings_of_the_pf(node: Node, number: int, attach: str) -> None:
    """ADD and DEL apply the PF's settings of the VF; the driver refuses each request three times."""
    node.prelude = busy_driver.prelude(number, vf=3)
    round_trip(node, node.builtin(vlan=100, attach=attach))


@pytest.mark.parametrize("attach", ["move", "macvlan"])
@pytest.mark.parametrize("how", [{"mac": 4}, {"late": 4}, {"mac": 3, "late": 3, "up": 2}], ids=str)
def test_a_mac_that_is_refused_or_applied_late(node: Node, how: dict[str, int], attach: str) -> None:
    node.prelude = busy_driver.prelude(errno.EADDRNOTAVAIL, **how)
    assert round_trip(node, node.builtin(mac=MAC, attach=attach), up=True)["address"] == MAC


@pytest.mark.parametrize(
    ("kind", "more", "limit"),
    [("up", {}, 0), ("vf", {"vlan": 100}, 1), ("mac", {"mac": MAC}, 1), ("late", {"mac": MAC}, 0)],
)
def test_the_wait_is_bounded(node: Node, kind: str, more: dict[str, Any], limit: int) -> None:
    """The error names the last errno; the undo waits at most two seconds and restores everything."""
    pod = node.pod()
    before = node.kept()
    node.prelude = busy_driver.prelude(errno.EBUSY, **{kind: 10**6})
    began = time.monotonic()
    done = node.run("ADD", node.builtin(**more, timeout=limit), pod)
    took = time.monotonic() - began
    assert done.status == 1, done
    assert kind == "late" or os.strerror(errno.EBUSY) in done.stdout.decode()
    assert (limit or 2.0) < took < 60.0
    assert node.kept() == before


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (errno.EOPNOTSUPP, 7, "attach macvlan: the kernel has no macvlan"),
        (errno.EBUSY, 101, "attach macvlan: VF 0 of pf0 (0000:01:10.0) has a device on top of it"),
    ],
    ids=errno.errorcode.get,
)
def test_a_macvlan_that_the_kernel_refuses(node: Node, number: int, code: int, words: str) -> None:
    """The error gives the reason, and the ADD is undone."""
    before, pod = node.state(), node.pod()
    node.prelude = busy_driver.prelude(number, macvlan=10**6)
    assert node.refused(code, "ADD", node.conf(vf=0, attach="macvlan"), pod).startswith(words)
    assert (node.state(), node.records()) == (before, [])
