"""The release of real VFs after killed ADDs and deleted namespaces."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from harness.card import Card, Node, differences
from harness.pod import ip, link, links
from harness.server import injecting, needs_strace
from harness.waiting import wait_for

MAC = "02:5f:00:00:00:01"
VF = 1
ASKED: dict[str, Any] = {"vf": VF, "mac": MAC, "vlan": 100, "mtu": 1400, "cores": "0"}
HANGING = """#!/bin/sh
[ "$CNI_COMMAND" = ADD ] || exit 0
echo $$ >"${0%/*}/pid"
exec sleep 600
"""


def devices(pod: str) -> list[str]:
    return [item["ifname"] for item in links(pod)]


# --- DEL after the end of the namespace


@pytest.mark.parametrize("ifname", ["taken", "free"])
def test_the_namespace_is_gone(node: Node, card: Card, ifname: str) -> None:
    """The kernel returns the VF to the host, as dev%d if its name in the pod is in use on the host."""
    ifname = card.pf if ifname == "taken" else "podnet0"
    pod = node.pod()
    before = card.state()
    conf = node.conf(**ASKED, ipam=node.host_local())
    node.add(conf, pod, ifname=ifname)
    ip("netns", "del", pod)
    node.delete(conf, pod, ifname=ifname)
    assert not differences(before, card.state())
    assert node.leases() == []
    assert not node.records()
    node.delete(conf, pod, ifname=ifname)  # a second DEL finds nothing and succeeds


# --- killed ADDs


@needs_strace
@pytest.mark.modes("process")
def test_a_killed_add(node: Node, card: Card) -> None:
    """Killed as it is about to ask the kernel for the sixth time; the first three requests only read."""
    pod = node.pod()
    before = card.state()
    static = {"type": "static", "addresses": [{"address": "10.88.0.2/24"}]}
    conf = node.conf(**ASKED, ipam=static)
    kill = injecting("sendto,sendmsg", "signal=SIGKILL:when=6")
    strace = ("strace", "-o", "/dev/null", *kill)
    killed = node.run("ADD", conf, pod, wrap=strace, env={"SRIOV_FAST_BACKEND": "cython"})
    assert killed.status == -9, killed
    assert killed.stdout == b""
    assert pod in node.attached()
    node.add(conf, pod)
    assert link("eth0", pod)["address"] == MAC
    node.delete(conf, pod)
    assert not node.records()
    assert devices(pod) == ["lo"]
    assert not differences(before, card.state())


@pytest.mark.modes("process")
def test_an_add_killed_while_ipam_hangs(node: Node, card: Card) -> None:
    """GC releases the VF if the ADD is killed after the move and the pod ends without a DEL."""
    (node.root / "bin").mkdir()
    hanging = node.root / "bin/host-local"  # runs concurrently with the move: it does not choose the VF
    hanging.write_text(HANGING)
    hanging.chmod(0o755)
    pod = node.pod()
    before = card.state()
    process = node.start("ADD", node.conf(**ASKED, ipam=node.host_local(delegate=True)), pod)
    wait_for(lambda: "eth0" in devices(pod), "the VF in the pod")
    process.kill()
    process.wait()
    os.kill(int((node.root / "bin/pid").read_text()), signal.SIGKILL)  # a runtime kills the process group
    ip("netns", "del", pod)
    node.collect()
    assert not node.records()
    assert not differences(before, card.state())
