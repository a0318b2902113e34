"""The address service: allocation from a pool of a million addresses, nearly full compared with empty.

``SRIOV_FAST_TAKEN`` sets the number of addresses. Filling etcd takes minutes. The ratio is in ``extra_info``
of the JSON. No time is asserted.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "plain"))

from ipamd_kit import HOST, Etcd, ask, config, made

from sriov_fast.ipamd.pools import SHARDS, AddressSpace
from sriov_fast.ipamd.schema import END, Held, RecordKeys, Shard, pack_freed, pack_own, pack_owner
from sriov_fast.ipamd.service import Service, open_service
from sriov_fast.ipamd.store import Rows
from sriov_fast.ipamd.transactions import describe

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

SIZE = int(os.environ.get("SRIOV_FAST_TAKEN", "1000000"))
LEFT = 600  # minimum of free addresses in the full pool, distributed over all shards
LONG_AGO = 1_000_000_000_000  # ms
CHUNK = 2000
ROUNDS = 200


def document() -> dict[str, Any]:
    first = IPv4Address("10.0.0.1")
    ranges = [{"start": str(first), "end": str(first + SIZE - 1)}]
    return config("10.0.0.0/8", grace=0, pool={"ranges": ranges, "mac_prefix": "02:5a:00"})


def taken(keys: RecordKeys, space: AddressSpace, at: int) -> Rows:
    """Return the records of a leased address, as an allocation writes them."""
    who = ask(f"old-{at:x}")
    own = pack_own(describe(who, None, [(space, at)]), [Held(space.ident, at, True)])
    return [
        (keys.own("n", who.container_id, who.ifname), own),
        (keys.host("n", HOST, (who.container_id, who.ifname)), b""),
        (keys.address(space.ident, at), pack_owner("n", who.container_id, who.ifname, who.pod_id)),
    ]


def free(keys: RecordKeys, space: AddressSpace, at: int) -> Rows:
    """Return the records of a released address."""
    return [
        (keys.address(space.ident, at), pack_freed(LONG_AGO)),
        (keys.free(space.ident, at, LONG_AGO), b""),
    ]


def records(keys: RecordKeys, space: AddressSpace) -> Iterator[Rows]:
    """Yield the content of a store after all addresses were allocated and a few were released."""
    start, end = space.ranges[0]
    step = max((end - start + 1) // (LEFT + 40) | 1, 1)  # odd: every shard gets free addresses
    shards = {number: Shard(space, None) for number in range(SHARDS)}
    rows: Rows = []
    for at in range(start, end + 1):
        shard = shards[at % SHARDS]
        if (at - start) % step:
            rows += taken(keys, space, at)
            shard.used += 1
        else:
            rows += free(keys, space, at)
            shard.freed += 1
            shard.oldest = LONG_AGO
        if len(rows) >= CHUNK:
            yield rows
            rows = []
    for number, shard in shards.items():
        shard.cursor = END
        rows.append((keys.shard(space.ident, number), shard.pack()))
    yield rows


async def fill(service: Service) -> None:
    snapshot = await service._config_store.reload()
    gate = asyncio.Semaphore(4)

    async def write(rows: Rows) -> None:
        async with gate:
            await service._store.write(rows)

    under_way: set[asyncio.Task[None]] = set()
    for rows in records(RecordKeys(snapshot.generation), snapshot.nets["n"].pools[0]):
        under_way.add(asyncio.create_task(write(sorted(rows))))
        if len(under_way) >= 8:
            _, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.gather(*under_way)


class Pair:
    """A full and an empty pool of the same size, on the same store."""

    def __init__(self, full: str, empty: str) -> None:
        self.runner = asyncio.Runner()
        self.services = {"full": self.open(full), "empty": self.open(empty)}
        self.runner.run(fill(self.services["full"]))
        (use,) = self.runner.run(self.services["full"].usage())
        assert SIZE - use.used >= LEFT
        assert use.used > 0.9 * SIZE
        self.count = 0

    def open(self, url: str) -> Service:
        service = self.runner.run(open_service(url))
        self.runner.run(service.configure(made(document()), None))
        return service

    def allocate(self, which: str) -> None:
        self.count += 1
        self.runner.run(self.services[which].allocate(ask(f"new-{self.count}")))

    def release(self, which: str) -> None:
        self.runner.run(self.services[which].release(("n", f"cnew-{self.count}", "eth0"), HOST))

    def ratio(self) -> dict[str, float]:
        """Return the median times of allocations, alternating between the pools, and their ratio."""
        times: dict[str, list[float]] = {"full": [], "empty": []}
        for _ in range(ROUNDS):
            for which, spent in times.items():
                begin = perf_counter()
                self.allocate(which)
                spent.append(perf_counter() - begin)
                self.release(which)
        found = {which: median(spent) for which, spent in times.items()}
        figures = {f"{which} us": round(spent * 1e6, 1) for which, spent in found.items()}
        return {"full / empty": round(found["full"] / found["empty"], 2), "taken": SIZE - LEFT, **figures}

    def close(self) -> None:
        for service in self.services.values():
            self.runner.run(service.close())
        self.runner.close()


@pytest.fixture(scope="module", params=["sqlite", "etcd"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:  # on a disk, as /var/lib
        if request.param == "sqlite":
            both, stop = [f"sqlite://{directory}/{which}.db" for which in ("full", "empty")], None
        else:
            etcd = Etcd("--quota-backend-bytes", str(8 << 30)).start()
            both, stop = [f"etcd://{etcd.address}?prefix={which}" for which in ("full", "empty")], etcd.stop
        try:
            made_pair = Pair(*both)
            yield made_pair
            made_pair.close()
        finally:
            if stop is not None:
                stop()


@pytest.mark.benchmark(group="allocation in a pool of a million addresses")
def test_a_full_pool_against_an_empty_one(benchmark: BenchmarkFixture, pair: Pair) -> None:
    benchmark.extra_info.update(pair.ratio())

    def once() -> None:
        pair.allocate("full")
        pair.release("full")

    benchmark.pedantic(once, rounds=50)
