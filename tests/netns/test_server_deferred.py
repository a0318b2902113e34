"""``--defer-release``: a DEL replies when the VF is down and its address free; the move to the host follows.

strace delays the netlink message that moves the VF, so that a test can interfere.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from harness.runtime import Outcome
from harness.server import Strace, injecting, needs_strace
from harness.veth import DeferredNode, MakeNode
from harness.waiting import wait_for

pytestmark = [
    pytest.mark.modes("deferred"),
    pytest.mark.fresh,
    needs_strace,
]

HELD = 1.0  # seconds, if the move continues afterwards
FOR_GOOD = 60.0  # if the server is killed before


@pytest.fixture
def node(make_node: MakeNode) -> DeferredNode:
    """A node with a single VF, which was up with an MTU of the operator's."""
    node = make_node(vfs=1)
    assert isinstance(node, DeferredNode)
    node.nip("link", "set", "pf0v0", "up", "mtu", "1400")
    return node


def config(node: DeferredNode, **more: Any) -> dict[str, Any]:
    return node.conf(ipam=node.host_local(delegate=False), mtu=1450, cores=[1], **more)


def way_home(node: DeferredNode, conf: dict[str, Any], pod: str) -> int:
    """Return the number of a DEL's ``sendto`` that moves the VF: the first after the reply."""
    node.add(conf, pod)
    node.settle()
    with Strace(node.server.ready().pid, node.root / "strace", "-e", "trace=sendto") as trace:
        node.delete(conf, pod)
    (calls,) = (calls for calls in trace.calls().values() if any('"SRF1' in call for call in calls))
    reply = next(number for number, call in enumerate(calls) if '"SRF1' in call)
    assert "nlmsg" in calls[reply + 1]
    return reply + 2


class Homing:
    """A deferred release: the DEL has replied, and the VF is still in ``pod``."""

    def __init__(self, conf: dict[str, Any], pod: str, done: Outcome, holder: Strace) -> None:
        self.conf, self.pod, self.done, self.holder = conf, pod, done, holder


Hold = Callable[..., contextlib.AbstractContextManager[Homing]]


@pytest.fixture
def hold(node: DeferredNode) -> Hold:
    """A context manager that attaches and deletes a VF, and delays its move by some seconds."""
    number = way_home(node, config(node), node.pod())

    @contextlib.contextmanager
    def held(seconds: float = HELD) -> Iterator[Homing]:
        conf, pod = config(node), node.pod()
        node.add(conf, pod)
        node.settle()
        words = injecting("sendto", f"delay_enter={int(seconds * 1e6)}:when={number}")
        with Strace(node.server.pid, node.root / "held", *words) as holder:
            done = node.run("DEL", conf, pod)
            assert (done.status, done.stdout) == (0, b""), done
            assert on_its_way(node, pod)
            yield Homing(conf, pod, done, holder)

    return held


def on_its_way(node: DeferredNode, pod: str) -> bool:
    return node.returning() == [f"{node.tree.pci(0)}~~{pod}~eth0"] and node.state() == {}


def masks(node: DeferredNode) -> set[str]:
    return {node.tree.mask(irq).read_text().strip() for irq in node.tree.irqs(0)}


def test_the_reply_comes_first(node: DeferredNode, hold: Hold) -> None:
    """At the reply of a DEL the VF is down and the address free; the move follows."""
    before = node.state()
    with hold() as returning:
        assert node.leases() == []
        assert "UP" not in node.link("eth0", returning.pod)["flags"]
        assert masks(node) == {"ff"}
        assert on_its_way(node, returning.pod)
        assert "msg=released" not in returning.done.stderr, "``run`` has read stderr to its end"
        node.homed()
        assert (node.state(), node.records(), node.locks()) == (before, [], [])
        assert f"msg=released command=DEL containerID={returning.pod}" in node.server.said()


def test_the_runtime_deletes_the_namespace_at_once(node: DeferredNode, hold: Hold) -> None:
    """The server keeps the namespace open until the VF is moved.

    The end of the namespace would delete a veth, and rename a VF.
    """
    before = node.state()
    with hold() as returning:
        node.end(returning.pod)
        assert on_its_way(node, returning.pod)
        node.homed()
        assert (node.state(), node.records(), node.leases(), masks(node)) == (before, [], [], {"ff"})


@pytest.mark.parametrize(
    ("asked", "who"), [("any", "the same container"), ("vf", "another"), ("deviceID", "another")]
)
def test_the_next_add_waits_for_it(node: DeferredNode, hold: Hold, asked: str, who: str) -> None:
    more = {"vf": {"vf": 0}, "deviceID": {"master": None, "deviceID": node.tree.pci(0)}}.get(asked, {})
    before = node.state()
    with hold() as returning:
        pod = returning.pod if who == "the same container" else node.pod()
        process = node.start("ADD", config(node, **more), pod)
        assert on_its_way(node, returning.pod)
        node.homed()
    done = node.finish(process)
    assert done.status == 0, done
    assert node.link("eth0", pod)["mtu"] == 1450
    assert node.addresses("eth0", pod) == [done.json["ips"][0]["address"]]
    assert node.records() == [f"{node.tree.pci(0)}~{pod}~eth0"]
    node.delete(config(node, **more), pod)
    assert (node.state(), node.records(), node.leases(), node.locks()) == (before, [], [], [])


def test_the_same_interface_is_attached_again_at_once(make_node: MakeNode) -> None:
    """An ADD with the same interface name completes the release first: the VF still has the name."""
    node = make_node(vfs=2)
    assert isinstance(node, DeferredNode)
    before, pod = node.state(), node.pod()
    conf = node.conf(vf=0, ipam=node.host_local(delegate=False))
    number = way_home(node, conf, pod)
    node.add(conf, pod)
    node.settle()
    words = injecting("sendto", f"delay_enter={int(HELD * 1e6)}:when={number}")
    with Strace(node.server.pid, node.root / "held", *words):
        assert node.run("DEL", conf, pod).status == 0
        assert node.returning()
        node.add(conf | {"vf": 1}, pod)
        assert not node.returning()
    node.delete(conf | {"vf": 1}, pod)
    assert (node.records(), node.state()) == ([], before)


def test_it_is_deleted_once_more(node: DeferredNode, hold: Hold) -> None:
    before = node.state()
    with hold() as returning:
        for _ in range(2):
            done = node.run("DEL", returning.conf, returning.pod)
            assert (done.status, done.stdout, done.stderr) == (0, b"", "")
        assert on_its_way(node, returning.pod)
        node.homed()
    node.delete(returning.conf, returning.pod)
    assert (node.state(), node.records()) == (before, [])


def test_who_looks_meanwhile(node: DeferredNode, hold: Hold) -> None:
    """During the release CHECK finds no attachment, STATUS succeeds, and GC waits for the VF."""
    before = node.state()
    with hold() as returning:
        conf = returning.conf | {"cniVersion": "1.1.0"}
        assert "has no eth0 of ours" in node.refused(103, "CHECK", conf, returning.pod)
        assert node.run("STATUS", conf).status == 0
        assert on_its_way(node, returning.pod)
        node.collect(conf)
        assert (node.state(), node.records()) == (before, [])


def test_a_stop_waits_until_it_is_home(node: DeferredNode, hold: Hold) -> None:
    before = node.state()
    with hold() as returning:
        node.server.process.terminate()
        wait_for(lambda: not (node.run_dir / "sriov.sock").exists(), "it does not stop")
        assert on_its_way(node, returning.pod)
        assert node.server.ended() == 0
        assert (node.state(), node.records(), node.locks()) == (before, [], [])


# --- a killed server


def abandoned(node: DeferredNode, hold: Hold) -> Homing:
    """Kill the server during a release."""
    with hold(FOR_GOOD) as returning:
        returning.holder.end_with(node.server)
    assert on_its_way(node, returning.pod)
    assert node.held() == []
    return returning


@pytest.mark.modes("deferred", falls_back=True)
@pytest.mark.parametrize("namespace", ["stays", "has ended"])
@pytest.mark.parametrize("by", ["start", "GC", "ADD", "ADD vf", "ADD deviceID", "ADD again"])
def test_it_is_killed_and_the_next_brings_the_vf_home(
    node: DeferredNode, hold: Hold, by: str, namespace: str
) -> None:
    """The next request, or the server's start, completes the release.

    If the namespace has ended, the VF is in the host already.
    """
    before, other = node.state(), node.pod()
    returning = abandoned(node, hold)
    conf, pod = returning.conf, returning.pod
    if namespace == "has ended":
        # the test's sysfs does not follow a rename, and an ADD needs the device's name
        name = "dev7" if by in ("start", "GC") else "pf0v0"
        node.return_device(pod, name)
        node.end(pod)
    if by == "start":
        node.serve().ready()
    elif by == "GC":
        node.collect(conf)
    else:
        pod = other if by != "ADD again" or namespace == "has ended" else pod
        more = {"ADD vf": {"vf": 0}, "ADD deviceID": {"master": None, "deviceID": node.tree.pci(0)}}
        conf = config(node, **more.get(by, {}))
        done = node.run("ADD", conf, pod)
        assert done.status == 0, done
        assert "interrupted" in done.stderr
        node.delete(conf, pod)
    assert (node.state(), node.records(), node.leases(), node.held()) == (before, [], [], [])
    assert masks(node) == {"ff"}


# --- faults of IPAM and of the kernel


def test_the_server_dies_before_ipam_has_answered(node: DeferredNode) -> None:
    """The record is still the container's before IPAM's reply, so the client repeats the DEL in a process."""
    node.may_fall_back = True
    wait = 'touch "$ROOT/deleting"; while [ -d "$ROOT" ] && [ ! -e "$ROOT/go" ]; do sleep 0.02; done'
    node.delegate("host-local", f'[ "$CNI_COMMAND" = DEL ] && {{ {wait}; exit; }}; echo \'{{"ips":[]}}\'')
    before, pod, conf = node.state(), node.pod(), node.conf(ipam={"type": "host-local", "delegate": True})
    node.add(conf, pod)
    process = node.start("DEL", conf, pod)
    wait_for(lambda: (node.root / "deleting").exists(), "IPAM is not asked")
    assert node.returning() == []
    node.server.process.send_signal(signal.SIGKILL)
    assert node.server.ended() == -signal.SIGKILL
    (node.root / "go").touch()
    assert node.finish(process).status == 0
    assert node.in_process() == ["DEL again"]
    assert (node.state(), node.records(), node.held()) == (before, [], [])


def test_it_does_not_come_home(node: DeferredNode) -> None:
    """If the kernel refuses the move, the server logs the error, and the next request repeats the move."""
    before, pod, conf = node.state(), node.pod(), config(node)
    number = way_home(node, conf, node.pod())
    node.add(conf, pod)
    node.settle()
    words = injecting("sendto", f"error=ENOBUFS:when={number}")
    with Strace(node.server.pid, node.root / "held", *words):
        assert node.run("DEL", conf, pod).status == 0
        wait_for(lambda: not node.held(), "the lock is kept")
    assert on_its_way(node, pod)
    assert "No buffer space available" in node.server.said()
    other = node.pod()
    node.add(conf, other)
    node.delete(conf, other)
    assert (node.state(), node.records(), node.leases(), node.locks()) == (before, [], [], [])
