"""The resident server on a real card: deferred releases, and SIGKILL during an ADD."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.card import RECORDS, SOCKET, Card, Node, differences, start_server
from harness.pod import ip, link
from harness.server import Server
from harness.waiting import wait_for
from lab import demo_card

MAC = "02:5f:00:00:00:01"
RETURNING = "~~"

pytestmark = pytest.mark.modes("own")

Serve = Callable[..., Server]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    running: list[Server] = []

    def start(*options: str) -> Server:
        running.append(start_server(tmp_path / "server.log", *options))
        return running[-1]

    yield start
    running[-1].stop()
    SOCKET.unlink(missing_ok=True)  # a killed server leaves it


def settled() -> None:
    """Wait until all released VFs are in the host namespace."""
    wait_for(lambda: not any(RETURNING in name for name in os.listdir(RECORDS)), "all VFs home")


def cores_of(card: Card, index: int) -> list[set[int]]:
    """Return the cores of each interrupt of a VF, in the order of interrupt numbers."""
    masks = card.masks(index)
    return [demo_card.cpus_of_mask(masks[number]) for number in sorted(masks)]


def test_everything_with_a_deferred_release(node: Node, card: Card, serve: Serve) -> None:
    server = serve("--defer-release")
    before, pod = card.state(), node.pod()
    ipam = {"type": "host-local", "subnet": "10.77.0.0/24", "dataDir": str(node.root / "ipam")}
    conf = node.conf(vf=1, mac=MAC, vlan=100, ipam=ipam, cores=[1, 2])
    for _ in range(2):
        result = node.add(conf, pod)
        assert (link("eth0", pod)["address"], card.on_pf(1)["address"], card.vlan(1)) == (MAC, MAC, 100)
        assert {item["address"] for item in result["ips"]} == node.addresses(pod)
        pinned = cores_of(card, 1)
        assert pinned == [{1 + i % 2} for i in range(len(pinned))]
        assert len(pinned) > 1
        node.check(conf, pod, result)
        node.delete(conf, pod)
        assert node.leases() == []
        settled()
        assert not differences(before, card.state())
    server.stop()
    assert not differences(before, card.state())


def test_a_namespace_that_goes_at_once(node: Node, card: Card, serve: Serve) -> None:
    serve("--defer-release")
    before = card.state()
    conf = node.conf(vf=2, mac=MAC, vlan=7)
    for _ in range(2):
        pod = node.pod()
        node.add(conf, pod)
        node.delete(conf, pod)
        ip("netns", "del", pod)
    settled()
    assert not differences(before, card.state())


def test_a_server_that_is_killed(node: Node, card: Card, serve: Serve) -> None:
    """After SIGKILL of the server, the client completes the ADD, or undoes it and starts again."""
    before, pod = card.state(), node.pod()
    conf: dict[str, Any] = node.conf(vf=3, mac=MAC, vlan=9)
    server = serve()
    process = node.start("ADD", conf, pod)
    wait_for(lambda: node.records() or process.poll() is not None, "a record")
    server.kill()
    done = node.finish(process)
    assert done.status == 0, done
    assert link("eth0", pod)["address"] == MAC
    node.delete(conf, pod)
    assert not differences(before, card.state())
