"""The address service under many connections that send nothing."""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from collections.abc import Iterator

import ipam_server
import pytest
from ipam_server import AddressService, World

from sriov_fast.ipamd import accept

SOON = 9.0  # seconds; below the default receive_timeout


@contextlib.contextmanager
def files(soft: int) -> Iterator[None]:
    """Set the soft limit of open files within a context."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))


@contextlib.contextmanager
def silent(server: AddressService, number: int, source: str = "127.0.0.1") -> Iterator[list[socket.socket]]:
    """Open ``number`` connections from ``source`` without sending data; yield their sockets."""
    with contextlib.ExitStack() as closing:
        found = []
        for _ in range(number):
            peer = closing.enter_context(socket.socket())
            peer.settimeout(20)
            peer.bind((source, 0))
            peer.connect(("127.0.0.1", server.port))
            found.append(peer)
        yield found


def is_closed(peer: socket.socket) -> bool:
    try:
        while peer.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return True


@pytest.mark.parametrize(("tls", "source"), [(True, "127.0.0.2"), (False, "127.0.0.1")], ids=["TLS", "plain"])
def test_a_thousand_silent_connections(world: World, tls: bool, source: str) -> None:
    """Requests succeed despite 1000 silent connections, which the service closes."""
    with files(1024):
        server = world.serve(f"silent-{tls}-{source}", **({} if tls else {"insecure": True}))
    with files(4096), silent(server, 1000, source) as peers:
        begin = time.monotonic()
        for number in range(5):
            with world.host(server) as client:  # a new connection
                ipam_server.address(ipam_server.ask(client, f"c{number}"))
        assert time.monotonic() - begin < SOON
        assert all(map(is_closed, peers))
        assert time.monotonic() - begin < 60
    assert any(each["msg"] == "connections closed" for each in server.events())
    assert server.stop() == 0


def test_more_connections_than_may_be(world: World) -> None:
    """Requests succeed despite more silent connections than the limits in total and per address."""
    server = world.serve("bounded", max_connections=20, max_connections_per_address=10)
    with world.host(server) as client:
        ipam_server.address(ipam_server.ask(client, "c1"))
        with silent(server, 200), silent(server, 200, "127.0.0.2"), world.host(server) as other:
            ipam_server.address(ipam_server.ask(other, "c2"))
        ipam_server.address(ipam_server.ask(client, "c3"))
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("limits", "wanted", "found"),
    [
        ((1024, 1 << 20), accept.Bounds(2048, 256), accept.Bounds(2048, 256)),
        ((1024, 1024), accept.Bounds(2048, 256), accept.Bounds(832, 256)),
        ((256, 256), accept.Bounds(2048, 256), accept.Bounds(64, 128)),
        ((100, 100), accept.Bounds(10, 10), accept.Bounds(1, 10)),
    ],
)
def test_bounds_below_the_limit_of_open_files(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], wanted: accept.Bounds, found: accept.Bounds
) -> None:
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, to: set_to.append(to))
    assert accept.bounds(wanted) == found
    assert set_to in ([], [(min(limits[1], 65536), limits[1])])
