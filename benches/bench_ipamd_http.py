"""The address service over TLS: 32 clients that allocate and release, on SQLite and on etcd.

The figure is the ratio of a pair (allocate and release) to two requests of /healthz in the same run: the cost
of the store on top of HTTP. Clients and server share the machine's cores.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import Awaitable, Callable, Iterator
from time import perf_counter
from typing import Any

import aiohttp
import pytest
from ipam_server import ASK, HOST, AddressService, World, roomy, wanted
from ipamd_kit import Etcd

CLIENTS = 32
PAIRS = 640  # of all clients, in one round
ROUNDS = 3
_NUMBERS = itertools.count()

Step = Callable[[aiohttp.ClientSession], Awaitable[None]]


@pytest.fixture(scope="module", params=["sqlite", "etcd"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    directory = tmp_path_factory.mktemp("ipam")
    world = World(directory)
    try:
        if request.param == "etcd":
            with Etcd(sync=True) as member:
                yield world, world.serve("etcd", roomy(), storage=member.url), "etcd"
        else:
            yield world, world.serve("sqlite", roomy()), "sqlite"
    finally:
        world.end()


async def pair(session: aiohttp.ClientSession) -> None:
    container = f"b{next(_NUMBERS)}"
    async with session.post(ASK, json=wanted(container)) as response:
        assert response.status == 201, await response.text()
        await response.read()
    async with session.delete(f"{ASK}/{container}/eth0", params={"host_ip": HOST}) as response:
        assert response.status == 204, await response.text()


async def two_probes(session: aiohttp.ClientSession) -> None:
    for _ in range(2):
        async with session.get("/healthz") as response:
            assert response.status == 200
            await response.read()


async def many(world: World, server: AddressService, step: Step, rounds: int) -> tuple[float, list[float]]:
    """Return the seconds of all steps together, and of each; the connections are open before."""
    times: list[float] = []
    context = ssl.create_default_context(cafile=str(world.authority.ca))
    headers = {"authorization": f"Bearer {world.tokens.host}"}
    connector = aiohttp.TCPConnector(ssl=context, limit=CLIENTS)
    async with aiohttp.ClientSession(server.url, connector=connector, headers=headers) as session:

        async def client(number: int) -> None:
            for _ in range(number):
                begin = perf_counter()
                await step(session)
                times.append(perf_counter() - begin)

        await asyncio.gather(*(client(1) for _ in range(CLIENTS)))
        times.clear()
        begin = perf_counter()
        await asyncio.gather(*(client(rounds) for _ in range(CLIENTS)))
        return perf_counter() - begin, times


def test_pairs(benchmark: Any, served: tuple[World, AddressService, str]) -> None:
    """Measure allocations with their releases, in turns with pairs of probes."""
    world, server, store = served
    benchmark.group = "address service"
    spent: dict[Step, float] = {pair: 0.0, two_probes: 0.0}
    times: dict[Step, list[float]] = {pair: [], two_probes: []}
    for _ in range(ROUNDS):
        for step in spent:
            seconds, each = asyncio.run(many(world, server, step, PAIRS // CLIENTS))
            spent[step] += seconds
            times[step] += each
    ordered = sorted(times[pair])
    benchmark.extra_info |= {
        "store": store,
        "pairs/s": round(len(ordered) / spent[pair], 1),
        "p50 ms": round(ordered[len(ordered) // 2] * 1e3, 2),
        "p99 ms": round(ordered[int(len(ordered) * 0.99)] * 1e3, 2),
        "probe pairs/s": round(len(times[two_probes]) / spent[two_probes], 1),
        "ratio": round(spent[pair] / spent[two_probes], 2),
    }
    benchmark.pedantic(lambda: asyncio.run(many(world, server, pair, 4)), rounds=3)
    assert server.process.poll() is None


def test_one_plugin_call(benchmark: Any, served: tuple[World, AddressService, str]) -> None:
    """Measure an allocation and a release as the plugin sends them: each on a new TLS connection."""
    world, server, store = served
    benchmark.group = "address service"
    benchmark.extra_info["store"] = store

    def call() -> None:
        container = f"one{next(_NUMBERS)}"
        with world.host(server) as client:
            assert client.post(ASK, json=wanted(container)).status_code == 201
        with world.host(server) as client:
            path = f"{ASK}/{container}/eth0"
            assert client.delete(path, params={"host_ip": HOST}).status_code == 204

    benchmark.pedantic(call, rounds=20, warmup_rounds=2)
