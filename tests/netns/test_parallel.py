"""Concurrent requests on one PF: no VF is attached twice or lost, and each refusal gives its reason."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from harness.runtime import Outcome
from harness.veth import MakeNode, Node

pytestmark = pytest.mark.modes("resident", "deferred")


def all_at_once(node: Node, command: str, conf: dict[str, Any], pods: Sequence[str]) -> list[Outcome]:
    done = [node.finish(process) for process in [node.start(command, conf, pod) for pod in pods]]
    node.homed()
    return done


@pytest.mark.modes("process", "resident")
def test_32_adds_on_8_vfs(make_node: MakeNode, mode: str) -> None:
    node = make_node(vfs=8)
    conf = node.conf(ipam=node.host_local(), cniVersion="1.0.0")
    if mode == "resident":  # an IPAM plugin with an unknown name may choose the VF, so it runs first
        (node.root / "bin").mkdir()
        (node.root / "bin" / "theirs").symlink_to("/usr/lib/cni/host-local")
        conf["ipam"]["type"] = "theirs"
    before, pods = node.state(), [node.pod() for _ in range(32)]
    done = dict(zip(pods, all_at_once(node, "ADD", conf, pods), strict=True))
    winners = [pod for pod in pods if done[pod].status == 0]
    assert len(winners) == 8
    for pod in set(pods) - set(winners):
        assert done[pod].json["code"] == 11, done[pod]
        assert done[pod].json["msg"] == "no VF free on pf0 (8 VFs)"
    records = [name.split("~") for name in node.records()]
    assert {record[0] for record in records} == {node.tree.pci(index) for index in range(8)}
    assert {record[1] for record in records} == set(winners)
    macs = [done[pod].json["interfaces"][0]["mac"] for pod in winners]
    assert sorted(macs) == sorted(device["address"] for device in before.values())
    assert [node.link("eth0", pod)["address"] for pod in winners] == macs
    addresses = [done[pod].json["ips"][0]["address"] for pod in winners]
    assert sorted(node.leases()) == sorted(address.partition("/")[0] for address in addresses)
    assert len(set(addresses)) == 8
    assert (node.state(), node.locks()) == ({}, [])

    for outcome in all_at_once(node, "DEL", conf, pods):
        assert (outcome.status, outcome.stdout) == (0, b""), outcome
    assert (node.state(), node.records(), node.leases(), node.locks()) == (before, [], [], [])


def test_churn(make_node: MakeNode) -> None:
    """ADDs and DELs run concurrently; the only permitted error is the lack of a free VF."""
    node = make_node(vfs=4)
    conf = node.conf(ipam=node.host_local())
    before, pods = node.state(), [node.pod() for _ in range(8)]
    attached: set[str] = set()
    most = 0
    order = random.Random(7)
    for _ in range(6):
        order.shuffle(pods)
        running = [(pod, node.start("DEL" if pod in attached else "ADD", conf, pod)) for pod in pods]
        for pod, process in running:
            done = node.finish(process)
            if pod in attached:
                assert done.status == 0, done
                attached.remove(pod)
            elif done.status == 0:
                attached.add(pod)
            else:
                assert done.json["code"] == 11, done
        node.homed()
        owners = [name.split("~")[1] for name in node.records()]
        assert sorted(owners) == sorted(attached)
        assert len(node.leases()) == len(attached)
        assert len(node.state()) == 4 - len(attached)
        most = max(most, len(attached))
    assert most  # in the last round every ADD may have run before the DELs
    for outcome in all_at_once(node, "DEL", conf, pods):
        assert outcome.status == 0, outcome
    assert (node.state(), node.records(), node.leases(), node.locks()) == (before, [], [], [])


def test_two_adds_for_one_container(node: Node) -> None:
    pod, conf = node.pod(), node.conf(ipam=node.host_local())
    done = all_at_once(node, "ADD", conf, [pod] * 4)
    assert Counter(outcome.status for outcome in done) == {0: 1, 1: 3}
    for outcome in done:
        if outcome.status:
            assert outcome.json["code"] == 101, outcome
            assert f"container {pod} has eth0 already" in outcome.json["msg"]
    assert len(node.records()) == len(node.leases()) == 1
    assert node.addresses("eth0", pod) == ["10.77.0.2/24"]


def test_two_dels_for_one_container(node: Node) -> None:
    before, pod, conf = node.state(), node.pod(), node.conf(ipam=node.host_local())
    node.add(conf, pod)
    assert [outcome.status for outcome in all_at_once(node, "DEL", conf, [pod] * 4)] == [0] * 4
    assert (node.state(), node.records(), node.leases(), node.locks()) == (before, [], [], [])


def test_one_device_for_many(node: Node) -> None:
    """One of six ADDs for a device ID succeeds; the errors of the others name its container."""
    pods = [node.pod() for _ in range(6)]
    conf = node.conf(master=None, deviceID=node.tree.pci(1), ipam=node.host_local())
    done = dict(zip(pods, all_at_once(node, "ADD", conf, pods), strict=True))
    (winner,) = (pod for pod in pods if done[pod].status == 0)
    for pod in set(pods) - {winner}:
        assert done[pod].json["code"] == 11, done[pod]
        assert f"it belongs to container {winner}, eth0" in done[pod].json["msg"]
    assert len(node.leases()) == 1


def test_gc_beside_adds(make_node: MakeNode) -> None:
    """A concurrent GC locks the owner of each attachment in turn, and the ADDs succeed."""
    node = make_node(vfs=4)
    conf = node.conf(ipam=node.host_local())
    before, pods = node.state(), [node.pod() for _ in range(4)]
    for pod in pods[:2]:
        node.add(conf, pod)
    kept = [{"containerID": pod, "ifname": "eth0"} for pod in pods[1:]]
    gc = node.start("GC", conf | {"cniVersion": "1.1.0", "cni.dev/valid-attachments": kept})
    adds = all_at_once(node, "ADD", conf, pods[2:])
    assert (node.finish(gc).status, [outcome.status for outcome in adds]) == (0, [0, 0])
    assert sorted(name.split("~")[1] for name in node.records()) == sorted(pods[1:])
    assert len(node.leases()) == 3
    for pod in pods:
        node.delete(conf, pod)
    assert node.state() == before
