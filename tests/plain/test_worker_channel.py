"""The channel between the server and a worker."""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from harness.waiting import wait_for
from sriov_fast.server import workers
from sriov_fast.server.counts import Counts
from sriov_fast.server.workers import Channel, Worker

Ends = tuple[Worker, Channel]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    shared = memoryview(bytearray(16)).cast("Q")
    channel = Channel(theirs, shared)
    channel.setblocking(False)
    with ours, theirs:
        yield Worker(os.getpid(), ours, shared), channel


def answer(channel: Channel) -> None:
    """Answer the server's next question."""
    select.select([channel.fileno()], [], [])
    with pytest.raises(BlockingIOError):
        channel._accept()


def steps(seconds: float) -> Any:
    return SimpleNamespace(begin=0, spans=[("move", "kernel", 0, int(seconds * 1e9))])


def test_a_connection_arrives(ends: Ends) -> None:
    """A connection counts as the worker's from the moment that it is passed on."""
    worker, channel = ends
    peer, connection = socket.socketpair()
    with peer, connection:
        worker.take(connection.fileno())
        assert worker.load() == 1
        (fd,) = channel._accept()
    assert (worker.load(), os.get_inheritable(fd)) == (0, False)
    with channel, channel:
        assert (worker.load(), worker.running()) == (2, 2)
    assert (worker.load(), worker.running()) == (0, 0)
    with socket.socket(fileno=fd) as arrived:
        assert arrived.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_UNIX
    with pytest.raises(BlockingIOError):
        channel._accept()


def test_a_connection_without_a_descriptor(ends: Ends) -> None:
    """A connection does not count if the kernel closed it because the worker had no free descriptor."""
    worker, channel = ends
    peer, connection = socket.socketpair()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with peer:
        with connection:
            worker.take(connection.fileno())
        lowest = os.open(os.devnull, os.O_RDONLY)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
        try:
            with pytest.raises(BlockingIOError):
                channel._accept()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert worker.load() == 0
        assert peer.recv(1) == b""


def test_counts_are_answered(ends: Ends) -> None:
    """A late answer is discarded, and a worker that has ended keeps its last counts."""
    worker, channel = ends
    channel.counts = Counts()
    channel.counts.served("ADD", 1, b'{"code": 11}', steps(0.5))
    worker._channel.settimeout(0.3)
    assert worker.counts() == {}  # it has not answered in time
    with pytest.raises(BlockingIOError):
        channel._accept()
    channel.counts.served("ADD", 1, b'{"code": 11}', steps(0.5))
    answers = threading.Thread(target=answer, args=(channel,))
    answers.start()
    found = worker.counts()
    answers.join()
    assert found["requests"] == [["ADD", "11", 2]]
    assert found["steps"] == [[["move", "ADD"], [0] * 8 + [2] + [0] * 7, 1.0]]
    channel.close()
    assert worker.counts() == found


def test_the_end_of_the_server_ends_the_worker(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, channel = ends
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *words: sent.append(words))
    worker.stop()

    def is_told() -> bool:  # a child of another thread may hold the server's end until it calls execve(2)
        with pytest.raises(BlockingIOError):
            channel._accept()
        return bool(sent)

    wait_for(is_told, "the worker does not learn of the end")
    assert sent == [(os.getpid(), signal.SIGTERM)]


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_worker_that_has_ended_takes_nothing(handler: signal.Handlers) -> None:
    """A worker that has ended gets no connection, even if SIGCHLD is ignored and the kernel has reaped it."""
    before = signal.signal(signal.SIGCHLD, handler)
    try:
        (worker,) = workers.start(1, lambda channel: None, [])
        wait_for(worker.has_ended, "the worker does not end")
    finally:
        signal.signal(signal.SIGCHLD, before)
    with open(os.devnull) as file, pytest.raises(OSError, match=r"Broken pipe|reset"):
        worker.take(file.fileno())
    assert worker.load() == 0
    worker.join()
