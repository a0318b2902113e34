"""Two replicas over one etcd process: addresses are unique among many clients, and one replica is killed."""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from ipam_server import ASK, HOST, AddressService, World, address, roomy, wanted
from ipamd_kit import Etcd

from harness.waiting import wait_for

CLIENTS = 24

pytestmark = pytest.mark.slow


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    found = World(tmp_path)
    yield found
    found.end()


def pair(world: World, etcd: Etcd, prefix: str) -> list[AddressService]:
    """Start two processes with the same store and the same configuration."""
    url = f"{etcd.url}?prefix=/{prefix}"
    return [world.serve(f"{prefix}{number}", roomy(), storage=url) for number in range(2)]


class Ledger:
    """The container of each address according to the replies; an address in use must not be given again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders: dict[str, str] = {}
        self.asked = 0
        self.retried = 0

    def give(self, given: str, container: str) -> None:
        with self._lock:
            holder = self._holders.setdefault(given, container)
            assert holder == container, f"{given} is both {holder}'s and {container}'s"
            self.asked += 1

    def take_back(self, given: str) -> None:
        """Remove an address before its release is requested: the service may then give it again."""
        with self._lock:
            del self._holders[given]

    def held(self) -> dict[str, str]:
        with self._lock:
            return {container: given for given, container in self._holders.items()}


class Client:
    """A node that repeats a request unchanged at the other replica if the first is unavailable."""

    def __init__(self, world: World, servers: list[AddressService], ledger: Ledger, name: str) -> None:
        self._clients = [world.admin(server) for server in servers]
        random.Random(name).shuffle(self._clients)
        self._ledger = ledger
        self._name = name
        self._numbers = itertools.count()

    def ask(self, method: str, path: str, **options: object) -> httpx.Response:
        for _ in range(50):
            try:
                response = self._clients[0].request(method, path, **options)  # type: ignore[arg-type]
                if response.status_code != 503:
                    return response
            except httpx.TransportError:
                pass
            self._ledger.retried += 1
            self._clients.reverse()
        raise AssertionError(f"{method} {path}: no replica answers")

    def work(self, rounds: int) -> None:
        for turn in range(rounds):
            container = f"{self._name}-{next(self._numbers)}"
            response = self.ask("POST", ASK, json=wanted(container))
            given = address(response)
            self._ledger.give(given, container)
            if turn % 4:
                self._ledger.take_back(given)
                path = f"{ASK}/{container}/eth0"
                assert self.ask("DELETE", path, params={"host_ip": HOST}).status_code == 204

    def close(self) -> None:
        for client in self._clients:
            client.close()


def check(world: World, server: AddressService, ledger: Ledger) -> None:
    """Assert that the store has the ledger's allocations and no others, with unique addresses."""
    with world.admin(server) as client:
        held = client.get("/v1/allocations").json()["allocations"]
        usage = client.get("/v1/usage").json()["pools"]
    addresses = Counter(each["ips"][0]["address"] for each in held)
    assert {each: count for each, count in addresses.items() if count > 1} == {}
    assert {each["container_id"]: each["ips"][0]["address"] for each in held} == ledger.held()
    assert usage[0]["used"] == len(held)


def test_clients_carry_on_when_a_replica_is_killed(world: World, etcd: Etcd) -> None:
    servers = pair(world, etcd, "killed")
    ledger = Ledger()
    clients = [Client(world, servers, ledger, f"c{number}") for number in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        working = [pool.submit(client.work, 8) for client in clients]
        wait_for(lambda: ledger.asked > CLIENTS, "the middle")
        servers[0].kill()
        for each in working:
            each.result()
    for client in clients:
        client.close()
    assert ledger.asked == CLIENTS * 8
    assert ledger.retried > 0
    check(world, servers[1], ledger)
    servers[0].restart()
    check(world, servers[0], ledger)
    for server in servers:
        assert server.stop() == 0
