"""Field reports on the address service: silent connections, assignments of other hosts, a full store."""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from collections.abc import Iterator

import ipam_server
import pytest
from ipam_server import OTHER_HOST, AddressService, World

from sriov_fast.ipamd import accept

SOON = 9.0  # seconds; less than the service gives a handshake
FAR_HOST = "10.55.206.40"


@contextlib.contextmanager
def files(soft: int) -> Iterator[None]:
    """Have another soft limit of open files."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))


@contextlib.contextmanager
def silent(server: AddressService, number: int, source: str = "127.0.0.1") -> Iterator[list[socket.socket]]:
    """Connect so often, and send nothing."""
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
def test_801_a_thousand_silent_connections(world: World, tls: bool, source: str) -> None:
    """They shut the service: its descriptors were used up, and handshakes had no limit of number or time."""
    with files(1024):
        server = world.serve(f"silent-{tls}-{source}", **({} if tls else {"insecure": True}))
    with files(4096), silent(server, 1000, source) as peers:
        begin = time.monotonic()
        for number in range(5):
            with world.host(server) as client:  # each on a connection of its own
                ipam_server.address(ipam_server.ask(client, f"c{number}"))
        assert time.monotonic() - begin < SOON
        assert all(map(is_closed, peers))
        assert time.monotonic() - begin < 60
    assert any(each["msg"] == "connections closed" for each in server.events())
    assert server.stop() == 0


def test_801_more_connections_than_may_be(world: World) -> None:
    """A connection that serves a request is not closed for another one."""
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
def test_801_bounds_below_the_limit_of_open_files(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], wanted: accept.Bounds, found: accept.Bounds
) -> None:
    """The default of max_connections was above the usual limit of descriptors."""
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, to: set_to.append(to))
    assert accept.bounds(wanted) == found
    assert set_to in ([], [(min(limits[1], 65536), limits[1])])


@pytest.mark.parametrize("hosts", [["10.55.206.20"], ["10.55.206.16/28", "fd00::/64"], []])
def test_802_an_assignment_of_another_hosts_pod(world: World, hosts: list[str]) -> None:
    """Any host's token could claim what was assigned to a pod of another host."""
    assigned = {"network": "mynet", "pod_id": "db", "ips": ["10.55.206.46"], "mac": "02:00:00:00:00:01"}
    domain = ipam_server.DOMAIN | {"assignments": [assigned | ({"hosts": hosts} if hosts else {})]}
    server = world.serve(f"assigned-{len(hosts)}", domain)
    thief = world.tokens.make("host", OTHER_HOST if len(hosts) < 2 else FAR_HOST)
    with world.host(server) as mine, server.client(world.authority, thief) as theirs:
        host = OTHER_HOST if len(hosts) < 2 else FAR_HOST
        refused = ipam_server.ask(theirs, "c1", host=host, pod="db")
        if not hosts:  # where none is named, the pod may be anywhere
            assert ipam_server.address(refused) == "10.55.206.46/26"
            return
        detail = ipam_server.problem(refused, 403, "forbidden")
        assert "assignment of pod 'db' is for hosts 10.55.206." in detail
        assert ipam_server.address(ipam_server.ask(mine, "c2", pod="db")) == "10.55.206.46/26"
        assert ipam_server.address(ipam_server.ask(theirs, "c3", host=host)) != "10.55.206.46/26"


def test_802_the_command_names_hosts(world: World) -> None:
    """``assignments set --host`` is what an operator types."""
    server = world.serve("assigned-by-command")
    env = {
        "SRIOV_FAST_IPAM_URL": server.url,
        "SRIOV_FAST_IPAM_CA": str(world.authority.ca),
        "SRIOV_FAST_IPAM_TOKEN_FILE": str(world.directory / "admin.token"),
    }
    words = ("assignments", "set", "mynet", "db", "--ip", "10.55.206.46", "--host", "10.55.206.20")
    ipam_server.run(*words, **env)
    assert "10.55.206.20" in ipam_server.run("assignments", "list", **env).stdout
    wrong = ipam_server.run(*words[:-1], "10.55.206.20/24", check=False, **env)
    assert wrong.returncode == 1
    assert "hosts[0]" in wrong.stderr
