"""The worker processes of a server: they share a burst of requests, and can end independently."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from harness.runtime import Outcome
from harness.scrape import scrape
from harness.server import command_of, cpu_of
from harness.veth import MakeNode, ResidentNode
from harness.waiting import wait_for

pytestmark = [pytest.mark.modes("resident"), pytest.mark.fresh]

PODS = 16


@pytest.fixture
def node(make_node: MakeNode) -> ResidentNode:
    """A node with a server that has one worker, independent of the number of CPUs."""
    node = make_node(vfs=PODS)
    assert isinstance(node, ResidentNode)
    node.again("--processes", "2", "--metrics", f"unix:{node.run_dir}/metrics.sock")
    return node


@pytest.fixture
def conf(node: ResidentNode) -> dict[str, Any]:
    """A network with ADDs that wait little for the kernel, so that they compete for the interpreter."""
    return node.conf(ipam=node.host_local(delegate=False), cniVersion="1.0.0", attach="macvlan")


def worker_of(node: ResidentNode) -> int:
    (pid,) = node.server.workers()
    return pid


def burst(node: ResidentNode, verb: str, conf: dict[str, Any], pods: list[str]) -> list[Outcome]:
    done = [node.finish(process) for process in [node.start(verb, conf, pod) for pod in pods]]
    assert [outcome.status for outcome in done] == [0] * len(pods), done
    return done


def has_ended(pid: int) -> bool:
    return command_of(str(pid)) == b""


def test_a_burst_is_shared(node: ResidentNode, conf: dict[str, Any]) -> None:
    """In a burst no VF and no address is allocated twice, and the metrics count both processes."""
    before, pods, worker = node.state(), [node.pod() for _ in range(PODS)], worker_of(node)
    spent, number = cpu_of(worker), 0

    def is_shared() -> bool:
        nonlocal number
        done = burst(node, "ADD", conf, pods)
        assert len({outcome.json["ips"][0]["address"] for outcome in done}) == PODS
        assert len({name.partition("~")[0] for name in node.records()}) == PODS
        burst(node, "DEL", conf, pods)
        number += PODS
        return cpu_of(worker) - spent > 0.02  # an idle second takes less than a millisecond

    wait_for(is_shared, "the worker serves no request")
    node.settle()
    found = scrape(node.run_dir / "metrics.sock")
    for verb in ("ADD", "DEL"):
        assert found[f"sriov_fast_requests_total{{code=0,verb={verb}}}"] == number
        assert found[f"sriov_fast_request_seconds_count{{verb={verb}}}"] == number
    assert found["sriov_fast_step_seconds_count{step=macvlan,verb=ADD}"] == number
    assert found["sriov_fast_requests_running{}"] == 0
    assert (node.state(), node.records(), node.leases(), node.locks()) == (before, [], [], [])


def test_a_request_alone_is_not_passed_on(node: ResidentNode, conf: dict[str, Any]) -> None:
    pod, worker = node.pod(), worker_of(node)
    spent = cpu_of(worker)
    for _ in range(5):
        node.add(conf, pod)
        node.delete(conf, pod)
        node.settle()
    assert cpu_of(worker) - spent < 0.02


def test_a_worker_that_is_killed(node: ResidentNode, conf: dict[str, Any]) -> None:
    """The clients of a killed worker repeat their requests; the server continues without it."""
    node.may_fall_back = True
    before, pods, worker = node.state(), [node.pod() for _ in range(PODS)], worker_of(node)
    adds = [node.start("ADD", conf, pod) for pod in pods]
    os.kill(worker, signal.SIGKILL)
    done = [node.finish(process) for process in adds]
    assert [outcome.status for outcome in done] == [0] * PODS, done
    wait_for(lambda: "a worker has ended" in node.server.said(), "nobody says that the worker has ended")
    assert node.server.workers() == []
    burst(node, "DEL", conf, pods)
    served = len(node.in_process())
    burst(node, "ADD", conf, pods)
    burst(node, "DEL", conf, pods)
    assert len(node.in_process()) == served
    node.settle()
    assert scrape(node.run_dir / "metrics.sock")["sriov_fast_requests_running{}"] == 0
    assert (node.state(), node.records(), node.leases(), node.locks()) == (before, [], [], [])


def test_a_server_that_is_killed_in_a_burst(node: ResidentNode, conf: dict[str, Any]) -> None:
    """The worker finishes its requests; the clients of the killed server repeat theirs."""
    node.may_fall_back = True
    before, pods, worker = node.state(), [node.pod() for _ in range(PODS)], worker_of(node)
    adds = [node.start("ADD", conf, pod) for pod in pods]
    node.server.kill()
    done = [node.finish(process) for process in adds]
    assert [outcome.status for outcome in done] == [0] * PODS, done
    wait_for(lambda: has_ended(worker), "the worker does not end")
    assert len({name.partition("~")[0] for name in node.records()}) == PODS
    burst(node, "DEL", conf, pods)
    node.settle()
    assert (node.state(), node.records(), node.leases(), node.locks()) == (before, [], [], [])


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_ends_with_its_server(node: ResidentNode, sent: signal.Signals) -> None:
    worker = worker_of(node)
    node.server.process.send_signal(sent)
    assert node.server.ended() == (0 if sent == signal.SIGTERM else -sent)
    wait_for(lambda: has_ended(worker), "the worker does not end")


def test_a_worker_holds_nothing_of_its_server(node: ResidentNode) -> None:
    """A worker holds no socket or lock of its server, so a new server can start before it ends."""
    worker = worker_of(node)
    directory = f"/proc/{worker}/fd"
    files = [os.readlink(f"{directory}/{fd}") for fd in os.listdir(directory)]
    assert len([name for name in files if name.startswith("socket:")]) == 1  # its channel
    assert str(node.run_dir / "server.lock") not in files


def test_one_process(node: ResidentNode, conf: dict[str, Any]) -> None:
    node.again("--processes", "1")
    assert node.server.workers() == []
    pods = [node.pod() for _ in range(PODS)]
    burst(node, "ADD", conf, pods)
    burst(node, "DEL", conf, pods)


def test_deferred_moves_are_those_of_one_process(node: ResidentNode) -> None:
    node.again("--defer-release")
    assert node.server.workers() == []
    node.again("--defer-release", "--processes", "2")
    assert len(node.server.workers()) == 1
