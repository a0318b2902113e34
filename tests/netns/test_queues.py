"""RPS and XPS masks of the device with the queues: the pod's device, or the VF under a macvlan."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from harness.veth import MakeNode, Node
from sriov_fast.vf import queues

pytestmark = [pytest.mark.modes("resident"), pytest.mark.fresh]

FILES = ("rx-0/rps_cpus", "rx-1/rps_cpus", "tx-0/xps_cpus", "tx-1/xps_cpus")


@pytest.fixture(params=["cython", "python"])
def wide(request: pytest.FixtureRequest, make_node: MakeNode) -> Node:
    """A node with a VF of two receive and two transmit queues, for each backend."""
    node = make_node(vfs=1, backend=request.param)
    give_queues(node, 2)
    return node


def give_queues(node: Node, number: int) -> None:
    """Recreate the first VF with the given number of receive and transmit queues."""
    queues_of = f"numrxqueues {number} numtxqueues {number}"
    node.nip("link", "del", "pf0v0")
    node.nip(*f"link add pf0v0 {queues_of} type veth peer name peer0 {queues_of}".split())
    node.nip("link", "set", "peer0", "up")


def sysfs(pod: str, name: str, file: str, value: str = "") -> str:
    path = f"/sys/class/net/{name}/queues/{file}"
    words = ["sh", "-c", f"echo {value} > {path}"] if value else ["cat", path]
    done = subprocess.run(["ip", "netns", "exec", pod, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def masks(pod: str, name: str) -> list[int]:
    return [int(sysfs(pod, name, file).replace(",", ""), 16) for file in FILES]


@pytest.mark.parametrize("attach", ["move", "macvlan"])
def test_masks(wide: Node, attach: str) -> None:
    """A DEL restores the operator's masks after the pod's changes."""
    node, pod = wide, wide.pod()
    sysfs(node.host, "pf0v0", FILES[0], "1")
    before = masks(node.host, "pf0v0")
    conf = node.conf(ipam=node.host_local(delegate=False), attach=attach, rps="0-1", xps=[1, 0])
    added = node.add(conf, pod)
    place = (pod, "eth0") if attach == "move" else (node.host, "pf0v0")
    assert masks(*place) == [3, 3, 2, 1]
    node.check(conf, pod, added)
    sysfs(*place, FILES[2], "1")
    assert "tx-0/xps_cpus is" in node.refused(103, "CHECK", conf | {"prevResult": added}, pod)
    node.delete(conf, pod)
    assert (masks(node.host, "pf0v0"), node.records()) == (before, [])


def test_a_failed_add_restores_the_masks(wide: Node) -> None:
    node, pod = wide, wide.pod()
    before = masks(node.host, "pf0v0")
    node.delegate("fails", 'if [ "$CNI_COMMAND" = ADD ]; then exit 1; fi')
    conf = node.conf(ipam={"type": "fails"}, rps=[0], xps=[0])
    assert node.run("ADD", conf, pod).status == 1
    node.homed()
    assert (masks(node.host, "pf0v0"), node.records()) == (before, [])


def test_a_device_with_one_transmit_queue(node: Node) -> None:
    """An ADD warns if the device has one transmit queue only, which has no XPS mask."""
    give_queues(node, 1)
    done = node.run("ADD", node.conf(rps=[1], xps=[0]), node.pod())
    assert (done.status, "xps is ignored" in done.stderr) == (0, True), done


def test_an_offline_core(node: Node) -> None:
    said: Any = node.refused(7, "ADD", node.conf(rps=[9]), node.pod())
    assert "rps: core 9 is not online" in said


@pytest.mark.parametrize(
    ("cores", "wanted"),
    [((5,), ["20", "20", "20"]), ((0, 1, 2, 3), ["9", "2", "4"]), ((0, 33), ["1", "200000000", "1"])],
)
def test_shares_of_transmit_queues(cores: tuple[int, ...], wanted: list[str]) -> None:
    files = [f"tx-{number}/xps_cpus" for number in range(3)]
    found = queues.plan(["rx-0/rps_cpus", *files], (), cores)
    assert {file: mask.replace(",", "").lstrip("0") for file, mask in found.items()} == dict(
        zip(files, wanted, strict=True)
    )
