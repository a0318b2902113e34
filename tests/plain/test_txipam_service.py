"""txipam and the real address service, and a network between them that delays, cuts and repeats."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the address service needs sriov-fast[ipam]")

from ipam_server import HOST, OTHER_HOST, AddressService, World, release_all
from wire_faults import Fault, Proxy

from sriov_fast.common.errors import SriovError
from sriov_fast.common.log import Logger
from sriov_fast.ipam.keys import Keys
from sriov_fast.ipam.txipam import outbox
from sriov_fast.ipam.txipam.plugin import TxIpam
from sriov_fast.ipam.txipam.pool import pool

POOL = {
    "name": "a",
    "network": "mynet",
    "subnet": "10.55.192.0/20",
    "gateway": "10.55.192.1",
    "vlan": 100,
    "mac_prefix": "02:5a:00",
    "routes": [{"dst": "0.0.0.0/0"}],
    "dns": {"nameservers": ["10.0.0.53"]},
}
SIX = {"name": "six", "network": "mynet", "subnet": "fd00:55::/64"}
SMALL = {
    "name": "small",
    "network": "tiny",
    "subnet": "10.56.0.0/24",
    "ranges": [{"start": "10.56.0.7", "end": "10.56.0.8"}],
}
WORLD = {
    "networks": [{"name": "mynet", "grace": 0}, {"name": "tiny", "grace": 0}],
    "pools": [POOL, SIX, SMALL],
    "hosts": [
        {"network": "mynet", "hosts": ["10.55.0.0/16"], "pools": ["a", "six"]},
        {"network": "tiny", "hosts": [HOST], "pools": ["small"]},
    ],
    "assignments": [{"network": "mynet", "pod_id": "named", "ips": ["10.55.200.1"], "vf": 3, "vlan": 7}],
}

Make = Callable[..., TxIpam]


@pytest.fixture(scope="module")
def server(world: World) -> AddressService:
    return world.serve("main", WORLD)


@pytest.fixture
def proxy(world: World, server: AddressService) -> Iterator[Proxy]:
    made = Proxy(server.port, *world.authority.server, world.authority.ca)
    yield made
    made.close()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def tx(world: World, server: AddressService, state: Path, tmp_path: Path) -> Iterator[Make]:
    token = world.authority.ca.parent / "token"  # where its authority is, it may go
    token.write_text(world.tokens.host)

    def make(container: str, pod: str = "", host: str = HOST, **more: Any) -> TxIpam:
        top = {key: more.pop(key) for key in tuple(more) if "." in key or key in ("prevResult", "name")}
        ipam = {"type": "txipam", "remote": server.url, "ca": str(world.authority.ca)} | more
        conf = {"cniVersion": "1.1.0", "name": "mynet", "ipam": {"tokenFile": str(token)} | ipam} | top
        args = f"IgnoreUnknown=1;PodID={pod or f'pod-{container}'};HostIP={host}"
        return TxIpam(
            keys=Keys(conf),
            container_id=container,
            ifname="eth0",
            args=args,
            runtime_dir=str(tmp_path / "run"),
            state_dir=str(state),
        )

    yield make
    pool.clear()
    with world.admin(server) as admin:  # the next test finds nothing
        release_all(admin)


def held(world: World, server: AddressService) -> dict[str, list[str]]:
    """What the service has given: {container: addresses}."""
    with world.admin(server) as admin:
        listed = admin.get("/v1/allocations").json()["allocations"]
    return {item["container_id"]: [ip["address"] for ip in item["ips"]] for item in listed}


def given(answer: dict[str, Any] | None) -> list[str]:
    assert answer
    return [ip["address"] for ip in answer["ips"]]


def refused(ipam: TxIpam, verb: str) -> SriovError:
    with pytest.raises(SriovError) as caught:
        ipam.run(verb, 60.0)
    return caught.value


def test_the_way_of_a_pod(tx: Make, world: World, server: AddressService) -> None:
    found = tx("a").run("ADD")
    assert found
    assert found["extra"]["vlan"] == 100
    assert found["extra"]["mac"].startswith("02:5a:00:")
    assert found["ips"][0]["gateway"] == "10.55.192.1"
    assert [":" in address for address in given(found)] == [False, True]
    assert found["routes"][0]["dst"] == "0.0.0.0/0"
    assert found["dns"] == {"nameservers": ["10.0.0.53"]}
    assert tx("a").run("ADD") == found
    assert held(world, server) == {"a": given(found)}
    tx("a", prevResult=found).run("CHECK")
    tx("a").run("STATUS")
    assert tx("a").run("DEL", 20.0) is None
    assert held(world, server) == {}
    assert refused(tx("a", prevResult=found), "CHECK").code == 103


def test_what_an_operator_assigned(tx: Make) -> None:
    found = tx("a", pod="named").run("ADD")
    assert found
    assert (found["extra"]["vf"], found["extra"]["vlan"], given(found)[0]) == (3, 7, "10.55.200.1/20")


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        ({"name": "nowhere"}, 7, "unknown-network"),
        ({"host": OTHER_HOST}, 7, "forbidden"),
        ({"tokenFile": None}, 7, "unauthorized"),
        ({"pod": "other"}, 110, "conflict"),
    ],
)
def test_refusals(tx: Make, more: dict[str, Any], code: int, words: str) -> None:
    tx("a").run("ADD")
    error = refused(tx("a", **more), "ADD")
    assert (error.code, words in error.msg) == (code, True), error.msg


def test_exhausted(tx: Make) -> None:
    tiny = {"name": "tiny"}
    for name in ("a", "b"):
        tx(name, **tiny).run("ADD")
    error = refused(tx("c", **tiny), "ADD")
    assert (error.code, "exhausted" in error.msg) == (11, True), error.msg
    error = refused(tx("c", **tiny), "STATUS")
    assert (error.code, "exhausted" in error.msg) == (51, True), error.msg
    tx("a", **tiny).run("DEL", 20.0)
    tx("c", **tiny).run("STATUS")
    assert tx("c", **tiny).run("ADD")


def test_many_at_once(tx: Make, world: World, server: AddressService) -> None:
    names = [f"c{at}" for at in range(60)]
    with ThreadPoolExecutor(6) as threads:
        found = dict(zip(names, threads.map(lambda name: given(tx(name).run("ADD")), names), strict=True))
    every = [address for addresses in found.values() for address in addresses]
    assert len(set(every)) == len(every) == 120
    assert held(world, server) == found


def test_two_replicas(tx: Make, world: World) -> None:
    storage = f"sqlite://{world.directory}/shared.db"
    one, two = (world.serve(name, WORLD, storage=storage) for name in ("one", "two"))
    remote = [one.url, two.url]
    found = tx("a", remote=remote).run("ADD")
    one.kill()
    assert tx("a", remote=remote).run("ADD") == found
    assert tx("a", remote=remote).run("DEL", 20.0) is None
    assert held(world, two) == {}
    two.kill()


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
    tx: Make, world: World, server: AddressService, proxy: Proxy, fault: Fault
) -> None:
    pool.clear()
    proxy.faults.append(fault)
    found = tx("a", remote=proxy.url).run("ADD")
    proxy.settle()
    assert held(world, server) == {"a": given(found)}
    pool.clear()
    proxy.faults.append(fault)
    tx("a", remote=proxy.url, prevResult=found).run("CHECK")
    pool.clear()
    proxy.faults.append(fault)
    assert tx("a", remote=proxy.url).run("DEL", 20.0) is None
    proxy.settle()
    assert held(world, server) == {}


def settled(state: Path) -> None:
    """Pay until nothing is owed."""
    deadline = time.monotonic() + 30
    while outbox.flush(str(state), Logger("error"), time.monotonic() + 10):
        assert time.monotonic() < deadline, list(outbox.entries(str(state)))
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_bad_day(
    tx: Make,
    world: World,
    server: AddressService,
    proxy: Proxy,
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    """Half of all exchanges fail, each in some way. In the end the service and its clients agree."""
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
                alive[name] = given(tx(name, **remote).run("ADD"))
            except SriovError as error:
                codes.add(error.code)
            if mine.random() < 0.6:
                tx(name, **remote).run("DEL", 20.0)
                alive.pop(name, None)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(live, range(4)))
    assert codes <= {11, 112}
    proxy.choose = lambda: None
    proxy.settle()
    settled(state)
    assert held(world, server) == alive
    every = [address for addresses in alive.values() for address in addresses]
    assert len(set(every)) == len(every)
