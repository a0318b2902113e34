"""The plugin is killed at one system call after the other; what comes next puts everything right."""

from __future__ import annotations

import itertools
import re
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from harness.runtime import Outcome
from harness.veth import MakeNode, Node

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")

# Where the machine or the journal is different before and after.
CALLS = ("sendto", "sendmsg", "recvmsg", "recvfrom", "rename", "unlink", "flock", "setns")


def repair_by_del(node: Node, conf: dict[str, Any], pod: str) -> None:
    node.delete(conf, pod)


def repair_by_add(node: Node, conf: dict[str, Any], pod: str) -> None:
    """The runtime tries again: it gets its VF, or is told to DEL it first. Then the pod ends."""
    done = node.run("ADD", conf, pod)
    if done.status == 0:
        assert "UP" in node.link("eth0", pod)["flags"]
        assert node.addresses("eth0", pod) == [done.json["ips"][0]["address"]]
    else:
        assert (done.json["code"], "DEL it first" in done.json["details"]) == (101, True)
    node.delete(conf, pod)


def repair_by_gc(node: Node, conf: dict[str, Any], pod: str) -> None:
    done = node.run("GC", conf | {"cniVersion": "1.1.0", "cni.dev/valid-attachments": []})
    assert done.status == 0, done


REPAIRS = (repair_by_del, repair_by_add, repair_by_gc)


def traced(node: Node, command: str, conf: dict[str, Any], pod: str, *words: str) -> Outcome:
    """Run the plugin in a process of its own under strace, whatever the node's server would do faster."""
    usual, node.socket = node.socket, "none"
    try:
        return node.run(command, conf, pod, wrap=("strace", *words))
    finally:
        node.socket = usual


def made(node: Node, command: str, conf: dict[str, Any], pod: str) -> Counter[str]:
    """Run the plugin to its end and count its calls."""
    trace = node.root / "strace"
    done = traced(node, command, conf, pod, "-o", str(trace), "-e", f"trace={','.join(CALLS)}")
    assert done.status == 0, done
    return Counter(re.findall(r"^(\w+)\(", trace.read_text(), re.MULTILINE))


def killed(node: Node, command: str, conf: dict[str, Any], pod: str, call: str, nth: int) -> bool:
    """Kill the plugin before its nth call of one kind; return whether it made so many."""
    inject = f"inject={call}:signal=SIGKILL:when={nth}"
    done = traced(node, command, conf, pod, "-o", "/dev/null", "-e", f"trace={call}", "-e", inject)
    node.settle()  # its IPAM may still be at work
    assert done.status in (0, -signal.SIGKILL, 128 + signal.SIGKILL), (call, nth, done)
    return done.status != 0


@pytest.mark.modes("resident", falls_back=True)  # a server prepares and repairs: it does so sooner
@pytest.mark.parametrize("attach", ["move", "macvlan"])
@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_killed_anywhere(make_node: MakeNode, command: str, attach: str) -> None:
    """At every third call, with the kinds of repair in turns; `make faults` has all of both."""
    node = make_node(vfs=1)
    node.nip("link", "set", "pf0v0", "up", "mtu", "1400")
    before, pod = node.state(), node.pod()
    ipam = node.host_local(routes=[{"dst": "0.0.0.0/0"}])
    conf = node.conf(ipam=ipam, mtu=1450, cores=[1, 2], attach=attach)
    counts = {"ADD": made(node, "ADD", conf, pod), "DEL": made(node, "DEL", conf, pod)}
    points = [(call, nth) for call, most in counts[command].items() for nth in range(1, most + 1, 3)]
    kinds = {call for call, _ in points}
    assert kinds >= {"rename", "unlink", "flock"} if command == "ADD" else kinds >= {"unlink", "flock"}
    assert len(points) > 5
    kills = 0
    for (call, nth), repair in zip(points, itertools.cycle(REPAIRS)):
        if command == "DEL":
            node.add(conf, pod)
        kills += killed(node, command, conf, pod, call, nth)
        repair(node, conf, pod)
        where = f"{command} killed before {call} {nth}, {repair.__name__}"
        assert node.state() == before, where
        assert (node.records(), node.leases()) == ([], []), where
        assert {node.tree.mask(irq).read_text().strip() for irq in node.tree.irqs(0)} == {"ff"}, where
    assert kills > len(points) - 3, "a record that is written anew has one more rename"


def test_a_lock_file_of_the_dead_keeps_nobody_out(node: Node) -> None:
    pod, conf = node.pod(), node.conf()
    assert killed(node, "ADD", conf, pod, "rename", 1)
    assert node.locks(), "it was killed with locks held"
    node.add(conf, pod)
    node.delete(conf, pod)
    leftovers = [name for name in node.locks() if name.startswith("owner-")]
    assert leftovers == []


def test_a_draft_of_the_dead_is_written_over(node: Node) -> None:
    directory = node.run_dir / "vfs"
    pod, conf = node.pod(), node.conf(vf=0)
    assert killed(node, "ADD", conf, pod, "rename", 1)
    assert [path.name[0] for path in directory.iterdir()] == ["."]
    assert node.records() == []
    node.add(conf, pod)
    assert [path.name for path in directory.iterdir()] == node.records()


def test_ipam_that_chose_before_the_crash_is_asked_to_give_back(node: Node) -> None:
    """Killed after IPAM's answer and before a record: DEL goes to IPAM all the same."""
    node.delegate("txipam", '[ "$CNI_COMMAND" = ADD ] && echo \'{"ips":[{"address":"10.1.0.2/24"}]}\'')
    conf, pod = node.conf(ipam={"type": "txipam", "delegate": True}), node.pod()
    before = node.state()
    assert killed(node, "ADD", conf, pod, "rename", 1)
    assert (node.calls(), node.records()) == (["ADD"], [])
    node.delete(conf, pod)
    assert (node.calls(), node.state()) == (["ADD", "DEL"], before)


def test_the_records_file_is_whole_at_all_times(node: Node) -> None:
    """Killed in the middle of writing a draft, there is the old record or none."""
    pod, conf = node.pod(), node.conf()
    wrap = ("strace", "-o", "/dev/null", "-P", f"{node.run_dir}/vfs/.{node.tree.pci(0)}")
    inject = ("-e", "trace=write", "-e", "inject=write:signal=SIGKILL:when=1")
    done = node.run("ADD", conf, pod, wrap=(*wrap, *inject))
    assert done.status in (-signal.SIGKILL, 128 + signal.SIGKILL), done
    assert node.records() == []
    node.add(conf, pod)
    assert Path(node.record()).read_text().startswith("{")
