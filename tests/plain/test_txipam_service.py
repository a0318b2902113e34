"""txipam and the real address service, with a proxy between them that delays, cuts and repeats."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the address service needs sriov-fast[ipam]")

from ipam_server import HOST, OTHER_HOST, AddressService, World, release_all
from txipam_service import Client
from wire_faults import Fault, Proxy

from harness.waiting import wait_for
from sriov_fast.common.errors import SriovError
from sriov_fast.ipam.txipam import outbox
from sriov_fast.ipam.txipam.pool import pool

POOL = {
    "name": "a",
    "network": "net1",
    "subnet": "10.55.192.0/20",
    "gateway": "10.55.192.1",
    "vlan": 100,
    "mac_prefix": "02:5a:00",
    "routes": [{"dst": "0.0.0.0/0"}],
    "dns": {"nameservers": ["10.0.0.53"]},
}
SIX = {"name": "six", "network": "net1", "subnet": "fd00:55::/64"}
SMALL = {
    "name": "small",
    "network": "tiny",
    "subnet": "10.56.0.0/24",
    "ranges": [{"start": "10.56.0.7", "end": "10.56.0.8"}],
}
WORLD = {
    "networks": [{"name": "net1", "grace": 0}, {"name": "tiny", "grace": 0}],
    "pools": [POOL, SIX, SMALL],
    "hosts": [
        {"network": "net1", "hosts": ["10.55.0.0/16"], "pools": ["a", "six"]},
        {"network": "tiny", "hosts": [HOST], "pools": ["small"]},
    ],
    "assignments": [{"network": "net1", "pod_id": "named", "ips": ["10.55.200.1"], "vf": 3, "vlan": 7}],
}


@pytest.fixture(scope="module")
def server(world: World) -> AddressService:
    return world.serve("main", WORLD)


@pytest.fixture
def proxy(world: World, server: AddressService) -> Iterator[Proxy]:
    made = Proxy(server.port, *world.authority.server, world.authority.ca)
    yield made
    made.close()


@pytest.fixture
def node(world: World, server: AddressService, tmp_path: Path) -> Iterator[Client]:
    token = world.directory / "host.token"  # may be sent, since its directory has the CA file
    yield Client(tmp_path, remote=server.url, ca=str(world.authority.ca), tokenFile=str(token))
    pool.clear()
    with world.admin(server) as admin:  # the next test begins without allocations
        release_all(admin)


def held(world: World, server: AddressService) -> dict[str, list[str]]:
    """Return the allocations of the service as {container: addresses}."""
    with world.admin(server) as admin:
        listed = admin.get("/v1/allocations").json()["allocations"]
    return {item["container_id"]: [ip["address"] for ip in item["ips"]] for item in listed}


def given(answer: dict[str, Any]) -> list[str]:
    return [ip["address"] for ip in answer["ips"]]


def test_the_way_of_a_pod(node: Client, world: World, server: AddressService) -> None:
    found = node.add()
    assert found["extra"]["vlan"] == 100
    assert found["extra"]["mac"].startswith("02:5a:00:")
    assert found["ips"][0]["gateway"] == "10.55.192.1"
    assert [":" in address for address in given(found)] == [False, True]
    assert found["routes"][0]["dst"] == "0.0.0.0/0"
    assert found["dns"] == {"nameservers": ["10.0.0.53"]}
    assert node.add() == found
    assert held(world, server) == {"a": given(found)}
    node.run("CHECK", prevResult=found)
    node.run("STATUS")
    node.delete()
    assert held(world, server) == {}
    node.fails(103, "not-found", verb="CHECK", prevResult=found)


def test_what_an_operator_assigned(node: Client) -> None:
    found = node.add(args=f"PodID=named;HostIP={HOST}")
    assert (found["extra"]["vf"], found["extra"]["vlan"], given(found)[0]) == (3, 7, "10.55.200.1/20")


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        ({"name": "nowhere"}, 7, "unknown-network"),
        ({"args": f"PodID=pod-a;HostIP={OTHER_HOST}"}, 7, "forbidden"),
        ({"tokenFile": None}, 7, "unauthorized"),
        ({"args": f"PodID=other;HostIP={HOST}"}, 110, "conflict"),
    ],
)
def test_refusals(node: Client, more: dict[str, Any], code: int, words: str) -> None:
    node.add()
    node.fails(code, words, **more)


def test_exhausted(node: Client) -> None:
    for name in ("a", "b"):
        node.add(name, name="tiny")
    for verb, code in (("ADD", 11), ("STATUS", 51)):
        node.fails(code, "exhausted", "c", verb=verb, name="tiny")
    node.delete("a", name="tiny")
    node.run("STATUS", "c", name="tiny")
    node.add("c", name="tiny")


# --- a network with faults

FAULTS = [
    Fault("delay", 0.2),
    Fault("cut", 0.0),
    Fault("cut", 0.3),
    Fault("cut", 0.99),
    Fault("lose"),
    Fault("half", 0.1),
    Fault("half", 0.95),
    Fault("twice"),
    Fault("again"),
    Fault("drop"),
    Fault("late", 0.1),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.what}-{fault.at:g}")
def test_one_fault_is_no_matter(
    node: Client, world: World, server: AddressService, proxy: Proxy, fault: Fault
) -> None:
    pool.clear()
    proxy.faults.append(fault)
    found = node.add(remote=proxy.url)
    proxy.settle()
    assert held(world, server) == {"a": given(found)}
    pool.clear()
    proxy.faults.append(fault)
    node.run("CHECK", remote=proxy.url, prevResult=found)
    pool.clear()
    proxy.faults.append(fault)
    node.delete(remote=proxy.url)
    proxy.settle()
    assert held(world, server) == {}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_bad_day(
    node: Client,
    world: World,
    server: AddressService,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    """Half of all exchanges fail in random ways; in the end the service and its clients agree."""
    monkeypatch.setattr(outbox, "IN_FLIGHT", 1.0)
    chance = random.Random(seed)
    faults = [*FAULTS, Fault("late", 0.3)]
    proxy.choose = lambda: chance.choice(faults) if chance.random() < 0.5 else None
    alive: dict[str, list[str]] = {}
    codes: set[int] = set()

    def live(thread: int) -> None:
        mine = random.Random(f"{seed}/{thread}")
        for number in range(12):
            name = f"c{thread}-{number}"
            remote = {"remote": proxy.url, "timeout": 5, "retries": 1}
            try:
                alive[name] = given(node.add(name, **remote))
            except SriovError as error:
                codes.add(error.code)
            if mine.random() < 0.6:
                node.delete(name, **remote)
                alive.pop(name, None)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(live, range(4)))
    assert codes <= {11, 112}
    proxy.choose = lambda: None
    proxy.settle()
    wait_for(lambda: node.flush() == 0, "something is owed")
    assert held(world, server) == alive
    every = [address for addresses in alive.values() for address in addresses]
    assert len(set(every)) == len(every)
