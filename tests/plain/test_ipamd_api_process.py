"""The address service as a process: start, stop, signals, systemd, an unavailable store, kill -9."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from ipam_server import (
    ASK,
    HOST,
    PATIENCE,
    AddressService,
    World,
    address,
    ask,
    command,
    environment,
    problem,
    release_all,
    roomy,
    run,
    toml,
    wanted,
)
from ipamd_kit import Etcd

from harness.waiting import wait_for
from sriov_fast.cli.ipam import commands

# -------------------------------------------------------------------------------------------------- start


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({}, "plain HTTP needs an explicit insecure = true"),
        ({"insecure": True, "listen": "somewhere:1"}, "server.listen[0]: 'somewhere:1'"),
        ({"insecure": True, "listen": "::1:1"}, "brackets"),
        ({"insecure": True, "port": 1}, "server.port: 1"),
        ({"insecure": True, "auth": "certificate"}, "needs client_ca"),
        ({"insecure": True, "auth": "none"}, "server.auth[0]: 'none'"),
        ({"insecure": True, "auth": []}, "server.auth"),
        ({"insecure": True, "log_level": "loud"}, "server.log_level: 'loud'"),
        ({"insecure": True, "tokens": "missing.json"}, "missing.json: no such file"),
        ({"insecure": True, "auth": "open", "storage": "redis://x"}, "'redis'"),
        ({"insecure": True, "auth": "open", "storage": "sqlite:///no/such/ipam.db"}, "/no/such"),
        ({"insecure": True, "auth": "open", "listen": "203.0.113.1:1"}, "listen: 203.0.113.1:1"),
        (
            {"insecure": True, "pools": [{"name": "a", "network": "nonet", "subnet": "10.0.0.0/24"}]},
            "pools[0].network: 'nonet'",
        ),
        ({"cert": "missing.crt", "key": "missing.key", "auth": "open"}, "missing.crt"),
    ],
)
def test_what_cannot_start_says_why(tmp_path: Path, table: dict[str, Any], named: str) -> None:
    path = tmp_path / "ipam.toml"
    table = {"listen": "127.0.0.1:0", "storage": f"sqlite://{tmp_path}/db"} | table
    pools = table.pop("pools", [])
    path.write_text(commands.toml({"pools": pools}) + toml(table))
    done = run("serve", "--config", path, check=False)
    assert done.returncode == 1
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "fastapi.py").write_text("raise ModuleNotFoundError('no fastapi', name='fastapi')")
    (tmp_path / "ipam.toml").write_text(toml({"insecure": True, "auth": "open"}))
    env = environment()
    env["PYTHONPATH"] = f"{tmp_path}:{env['PYTHONPATH']}"
    words = command("serve", "--config", tmp_path / "ipam.toml")
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'sriov-fast[ipam]' (missing: fastapi)" in done.stderr


def test_it_listens_in_several_places(world: World) -> None:
    server = world.serve("places", listen=["127.0.0.1:0", "[::1]:0"])
    places = server.wait("serving")["listen"].split(",")
    for place in places:
        url = f"https://{place}/healthz"
        assert httpx.get(url, verify=world.authority.trust(), trust_env=False).status_code == 200
    assert [place.rpartition(":")[0] for place in places] == ["127.0.0.1", "[::1]"]
    assert server.stop() == 0


def test_systemd_is_told(world: World) -> None:
    path = world.directory / "notify.socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(path))
        systemd.settimeout(PATIENCE)
        server = world.serve("notify", env={"NOTIFY_SOCKET": str(path)})
        assert systemd.recv(100) == b"READY=1"
        with world.host(server) as client:
            assert client.get("/readyz").status_code == 200
        server.signal(signal.SIGHUP)
        assert systemd.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert systemd.recv(100) == b"READY=1"
        server.signal(signal.SIGTERM)
        assert systemd.recv(100) == b"STOPPING=1"
    assert server.stop() == 0


def test_logs_in_logfmt(world: World) -> None:
    directory = world.directory / "logfmt"
    directory.mkdir()
    log = directory / "log"
    path = directory / "ipam.toml"
    table = {"listen": "127.0.0.1:0", "insecure": True, "auth": "open", "log_format": "logfmt"}
    path.write_text(toml(table | {"storage": f"sqlite://{directory}/db"}))
    with log.open("wb") as file:
        process = subprocess.Popen(command("serve", "--config", path), stderr=file, env=environment())
    try:
        line = wait_for(
            lambda: next((x for x in log.read_text().splitlines() if "msg=serving" in x), ""), "start"
        )
    finally:
        process.terminate()
    assert process.wait(PATIENCE) == 0
    assert " level=info " in line
    assert " auth=open " in line


# ----------------------------------------------------------------------------------------------- stop


def test_what_runs_is_finished_before_the_end(world: World) -> None:
    """A request with an incomplete body at SIGTERM is completed and answered before the process ends."""
    server = world.serve("graceful")
    body = json.dumps(wanted("late")).encode()
    with world.connect(server) as connection:
        connection.sendall(world.head(len(body)) + body[:10])
        wait_for(lambda: _running(world, server) >= 2, "the request")  # and that for the metrics
        server.signal(signal.SIGTERM)
        server.wait("stopping")
        connection.sendall(body[10:])
        assert connection.recv(65536).startswith(b"HTTP/1.1 201 ")
    assert server.stop() == 0
    assert any(event.get("container_id") == "late" for event in server.events())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port)).close()


def _running(world: World, server: AddressService) -> float:
    with world.host(server) as client:
        lines = client.get("/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("sriov_ipam_requests_running ")))


def test_idle_connections_do_not_hold_it_up(world: World) -> None:
    server = world.serve("idle")
    with world.host(server) as client:
        assert client.get("/healthz").status_code == 200
        begin = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begin < 10


def test_a_request_that_never_ends_does_not_hold_it_up_for_ever(world: World) -> None:
    server = world.serve("stuck", receive_timeout=60, stop_timeout=1)
    with world.connect(server) as connection:
        connection.sendall(world.head(100) + b"{")
        wait_for(lambda: _running(world, server) >= 2, "the request")
        assert server.stop() == 0


# --------------------------------------------------------------------------------- unavailable store


def test_a_store_that_is_gone_makes_it_unready_and_comes_back(world: World) -> None:
    with Etcd() as member:
        server = world.serve("unready", storage=member.url)
        with world.host(server) as client:
            assert client.get("/readyz").status_code == 200
            member.signal(signal.SIGSTOP)
            try:
                wait_for(lambda: client.get("/readyz").status_code == 503, "the end of readiness")
                response = client.get("/readyz")
                problem(response, 503, "unavailable")
                assert response.headers["retry-after"]
                assert client.get("/healthz").status_code == 200
                text = client.get("/metrics").text
                assert "sriov_ipam_store_up 0.0" in text
                assert "sriov_ipam_pool_addresses{" not in text
            finally:
                member.signal(signal.SIGCONT)
            wait_for(lambda: client.get("/readyz").status_code == 200, "readiness")
            assert "sriov_ipam_store_up 1.0" in client.get("/metrics").text
            address(ask(client, "back"))
            member.kill()
            problem(ask(client, "gone"), 503, "unavailable")
        assert server.stop() == 0


# ------------------------------------------------------------------------------------- kill -9 under load


class Load:
    """Clients that allocate and release without pause, and record the acknowledged allocations."""

    def __init__(self, world: World, server: AddressService, clients: int) -> None:
        self._world = world
        self._server = server
        self._stop = threading.Event()
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self.held: dict[str, str] = {}  # acknowledged allocations: container -> address
        self.open: set[str] = set()  # containers with an unanswered release
        self.acknowledged = 0
        self._pool = ThreadPoolExecutor(clients)
        self._work = [self._pool.submit(self._run) for _ in range(clients)]

    def _run(self) -> None:
        with self._world.host(self._server) as client:
            while not self._stop.is_set():
                try:
                    self._step(client)
                except httpx.TransportError:
                    return  # the server was killed

    def _step(self, client: httpx.Client) -> None:
        container = f"k{next(self._numbers)}"
        given = address(ask(client, container))
        with self._lock:
            self.held[container] = given
            self.acknowledged += 1
        if hash(container) % 2:
            with self._lock:
                self.open.add(container)
            gone = client.delete(f"{ASK}/{container}/eth0", params={"host_ip": HOST})
            assert gone.status_code == 204
            with self._lock:
                del self.held[container]
                self.open.discard(container)

    def end(self) -> None:
        self._stop.set()
        for work in self._work:
            work.result(PATIENCE)
        self._pool.shutdown()


@pytest.mark.slow
def test_what_was_acknowledged_survives_kill_9(world: World) -> None:
    server = world.serve("killed", roomy())
    for turn in range(2):
        load = Load(world, server, 8)
        wait_for(lambda load=load, turn=turn: load.acknowledged > 60 * (turn + 1), "some load")
        server.kill()
        load.end()
        assert load.held
        server.restart()
        with world.admin(server) as client:
            held = client.get("/v1/allocations").json()["allocations"]
            found = {each["container_id"]: each["ips"][0]["address"] for each in held}
            doubled = {each for each, count in Counter(found.values()).items() if count > 1}
            assert not doubled
            for container, given in load.held.items():
                # an unanswered release may have been committed
                assert found.get(container) == given or container in load.open, container
            for container in load.held.keys() - load.open:
                assert address(ask(client, container)) == load.held[container]
            release_all(client)
            assert client.get("/v1/allocations").json()["allocations"] == []
    assert server.stop() == 0
    with sqlite3.connect(server.directory / "ipam.db") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_the_configuration_and_allocations_survive_a_restart(world: World) -> None:
    server = world.serve("restart")
    with world.host(server) as client:
        given = address(ask(client, "r1"))
    assert server.stop() == 0
    server.restart()
    with world.host(server) as client:
        again = ask(client, "r1")
        assert (again.status_code, address(again)) == (200, given)
    assert server.stop() == 0
    assert os.stat(server.directory / "ipam.db").st_mode & 0o077 == 0
