"""Faults of the resident server's peers and system calls: no threads, silent peers, failing calls."""

from __future__ import annotations

import contextlib
import resource
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from harness.server import Strace, injecting, interfered, needs_strace
from harness.veth import Node, ResidentNode
from harness.waiting import wait_for

pytestmark = [pytest.mark.modes("resident"), pytest.mark.fresh]

NO_THREADS = injecting("clone,clone3", "error=EAGAIN")
HEADER = struct.Struct("=IIII16s")
MAGIC = int.from_bytes(b"SRF1", "little")
SOON = 8.0  # seconds; less than any time limit of the server


def whole(environ: bytes = b"CNI_COMMAND=VERSION\0", stdin: bytes = b"{}") -> bytes:
    return HEADER.pack(MAGIC, 0, len(environ), len(stdin), bytes(16)) + environ + stdin


def connected(node: ResidentNode) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(str(node.run_dir / "sriov.sock"))  # blocking: waits while the backlog is full
    peer.settimeout(30)
    return peer


def reply(peer: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    found = b""
    while chunk := peer.recv(1 << 16):
        found += chunk
    return found


def own(node: Node) -> dict[str, object]:
    return node.host_local(delegate=False)


# --- threads


@needs_strace
def test_a_thread_that_cannot_be_started(node: ResidentNode) -> None:
    """The server serves with its existing threads while clone fails with EAGAIN, and SIGTERM ends it."""
    server, conf = node.server.ready(), node.conf(ipam=own(node))
    pods = [node.pod(), node.pod()]
    with Strace(server.pid, node.root / "strace", *NO_THREADS):
        assert node.run("VERSION", {}).status == 0
        for command in ("ADD", "DEL"):
            begin = time.monotonic()
            for process in [node.start(command, conf, pod) for pod in pods]:
                done = node.finish(process)
                assert done.status == 0, done
            assert time.monotonic() - begin < 20
        assert server.said().count("cannot start a thread") == 1
        assert server.threads() == 2, "main, and one that serves"
    for process in [node.start("VERSION", {}) for _ in range(4)]:
        assert node.finish(process).status == 0
    wait_for(lambda: server.threads() > 2, "no thread is started when that can be done again")
    server.stop()


@needs_strace
def test_a_helper_that_cannot_be_started(node: ResidentNode) -> None:
    """An ADD executes IPAM and interrupts itself if it cannot start a helper thread."""
    server, conf, pod = node.server.ready(), node.conf(ipam=own(node), cores=[1]), node.pod()
    before = node.snapshot()
    assert node.run("VERSION", {}).status == 0  # the next request's thread exists then
    with Strace(server.pid, node.root / "strace", *NO_THREADS):
        found = node.add(conf, pod)
        assert node.addresses("eth0", pod) == [found["ips"][0]["address"]]
        node.delete(conf, pod)
    assert node.snapshot() == before


# --- connections


@contextlib.contextmanager
def peers(node: ResidentNode, number: int) -> Iterator[list[socket.socket]]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as closing:
        closing.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # 1024 is usual for a login
        yield [closing.enter_context(connected(node)) for _ in range(number)]


def test_silent_connections(node: ResidentNode) -> None:
    """500 connections without a request do not delay a call; the server closes them after ten seconds."""
    node.server.ready()
    conf, pod = node.conf(ipam=own(node)), node.pod()
    with peers(node, 500) as silent:
        begin = time.monotonic()
        node.add(conf, pod)
        node.delete(conf, pod)
        assert time.monotonic() - begin < SOON
        silent[0].sendall(whole())
        assert b"supportedVersions" in reply(silent[0]), "one that sends after all is served"
        begin = time.monotonic()
        assert {reply(peer) for peer in silent[1:]} == {b""}
        assert time.monotonic() - begin < 20, "the others are closed after ten seconds"
    wait_for(lambda: node.server.idle(), "connections are left")


def test_as_many_silent_connections_as_there_are_descriptors(node: ResidentNode) -> None:
    """Without free descriptors the server closes the connection that has been silent for longest."""
    node.server.ready()
    before = node.server.idle()
    with peers(node, 900) as first, peers(node, 900):
        begin = time.monotonic()
        assert node.run("VERSION", {}).status == 0
        assert time.monotonic() - begin < SOON
        first[0].settimeout(5)
        assert reply(first[0]) == b""
    assert node.server.idle() == before
    assert node.server.memory_kib() < 40 << 10


def test_slow_senders(node: ResidentNode) -> None:
    """A client that sends its request in single bytes occupies no thread."""
    node.server.ready()
    content = whole()
    with peers(node, 100) as slow:
        for place in range(4):
            for peer in slow:
                peer.sendall(content[place : place + 1])
            begin = time.monotonic()
            assert node.run("VERSION", {}).status == 0
            assert time.monotonic() - begin < SOON
        for peer in slow:
            peer.sendall(content[4:])
        for peer in slow:
            assert b"supportedVersions" in reply(peer)


def test_half_closed_connections(node: ResidentNode) -> None:
    """A half-closed connection gets its reply, or is closed at once if its request is incomplete."""
    node.server.ready()
    for content, answered in ((b"", False), (whole()[:-1], False), (whole(), True)):
        with connected(node) as peer:
            peer.sendall(content)
            peer.shutdown(socket.SHUT_WR)
            begin = time.monotonic()
            assert bool(reply(peer)) is answered
            assert time.monotonic() - begin < SOON


def test_clients_that_do_not_read(node: ResidentNode) -> None:
    """Clients that do not read their replies do not block others, even if they outnumber the threads."""
    node.again("--threads", "4")
    before = node.server.idle()
    with peers(node, 20) as deaf:
        for peer in deaf:
            peer.sendall(whole())
        begin = time.monotonic()
        assert node.run("VERSION", {}).status == 0
        assert time.monotonic() - begin < SOON
    assert node.server.idle() == before


@needs_strace
def test_a_client_that_does_not_read_its_log(node: ResidentNode) -> None:
    """A client that does not read its log, so that its pipe is full, blocks no thread and no lock."""
    node.server.ready()
    more = {f"unknown{number}": "x" for number in range(2000)}  # each adds a line to the log
    wrap = interfered("poll", "delay_enter=15000000:when=1")
    process = node.start("ADD", node.conf(logLevel="debug", **more), node.pod(), wrap=wrap)
    begin = time.monotonic()
    wait_for(lambda: node.records() and not node.held(), "the server waits for the client to read")
    assert time.monotonic() - begin < 10
    assert node.finish(process).status == 0
