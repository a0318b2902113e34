"""The way home of real VFs: after crashes, renames, lost namespaces, and many at once."""

from __future__ import annotations

import os
import shutil
import signal
from typing import Any

import pytest

from harness.card import Card, Node, differences
from harness.pod import ip, link, links
from harness.waiting import wait_for

MAC = "02:5f:00:00:00:01"
VF = 1
ASKED: dict[str, Any] = {"vf": VF, "mac": MAC, "vlan": 100, "mtu": 1400, "cores": "0"}
PARALLEL = 10
HANGING = """#!/bin/sh
[ "$CNI_COMMAND" = ADD ] || exit 0
echo $$ >"${0%/*}/pid"
exec sleep 600
"""


def devices(pod: str) -> list[str]:
    return [item["ifname"] for item in links(pod)]


# --- DEL when things are not as they were left


@pytest.mark.parametrize("ifname", ["taken", "free"])
def test_the_namespace_is_gone(node: Node, card: Card, ifname: str) -> None:
    """The kernel sends the VF home by itself, as dev%d where its name in the pod is taken."""
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
    node.delete(conf, pod, ifname=ifname)  # a second DEL finds nothing, and says nothing


def test_the_pod_changed_the_mac(node: Node, card: Card) -> None:
    """With no MAC asked for, the VF may have any: the journal knows which it had."""
    pod = node.pod()
    before = card.state()
    node.add(node.conf(vf=VF), pod)
    ip("-n", pod, "link", "set", "eth0", "address", MAC)
    assert card.on_pf(VF)["address"] == MAC
    node.delete(node.conf(vf=VF), pod)
    assert not differences(before, card.state())


# --- ADDs that are cut short


@pytest.mark.modes("process")
def test_a_killed_add(node: Node, card: Card) -> None:
    """Killed as it is about to ask the kernel for the sixth time; the first three requests only read."""
    if not shutil.which("strace"):
        pytest.skip("needs strace")
    pod = node.pod()
    before = card.state()
    static = {"type": "static", "addresses": [{"address": "10.88.0.2/24"}]}
    conf = node.conf(**ASKED, ipam=static)
    kill = "inject=sendto,sendmsg:signal=SIGKILL:when=6"
    strace = ("strace", "-o", "/dev/null", "-e", "trace=sendto,sendmsg", "-e", kill)
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
    """The VF is in the pod by then, which ends as well; nobody has its DEL but GC."""
    (node.root / "bin").mkdir()
    hanging = node.root / "bin/host-local"  # one that is known not to choose the VF: it runs beside the move
    hanging.write_text(HANGING)
    hanging.chmod(0o755)
    pod = node.pod()
    before = card.state()
    process = node.start("ADD", node.conf(**ASKED, ipam=node.host_local(delegate=True)), pod)
    wait_for(lambda: "eth0" in devices(pod), "the VF in the pod")
    process.kill()
    process.wait()
    os.kill(int((node.root / "bin/pid").read_text()), signal.SIGKILL)  # a runtime ends the whole group
    ip("netns", "del", pod)
    node.collect()
    assert not node.records()
    assert not differences(before, card.state())


# --- many at once


def test_parallel(node: Node, card: Card) -> None:
    """No VF twice; those beyond the last are told to try again; with a second PF in the list, it serves."""
    free = [vf for vf in card.vfs() if vf.netdev]
    if len(free) >= PARALLEL:
        pytest.skip(f"{card.pf} has {len(free)} free VFs: no {PARALLEL} ADDs fill it")
    before = [one.state() for one in node.cards]
    pods = [node.pod() for _ in range(PARALLEL)]
    conf = node.conf(vlan=100, cores="0", ipam=node.host_local())
    running = {pod: node.start("ADD", conf, pod) for pod in pods}
    done = {pod: node.finish(process) for pod, process in running.items()}
    lucky = [pod for pod in pods if done[pod].status == 0]
    refused = [done[pod] for pod in pods if done[pod].status]
    assert len(lucky) == len(free), refused
    assert len({node.owned(pod).pci for pod in lucky}) == len(free)
    assert {outcome.json["code"] for outcome in refused} == {11}, refused
    assert all(card.pf in outcome.json["msg"] for outcome in refused)
    assert len(node.leases()) == len(free)
    assert node.attached() == set(lucky)

    status = node.run("STATUS", node.conf(cniVersion="1.1.0"))
    assert status.status == 0, status  # a full card is no broken card
    if len(node.cards) > 1:
        pod = next(pod for pod in pods if pod not in lucky)
        node.add(node.conf(master=[one.pf for one in node.cards]), pod)
        assert node.owned(pod).pf == node.cards[1].pf

    leaving = {pod: node.start("DEL", conf, pod) for pod in node.attached()}
    for pod, process in leaving.items():
        outcome = node.finish(process)
        assert outcome.status == 0, (pod, outcome)
    assert not node.records()
    assert node.leases() == []
    for one, state in zip(node.cards, before, strict=True):
        assert not differences(state, one.state())
