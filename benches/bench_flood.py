"""Bursts of ADDs in both attach modes, and the latency of another process's netlink requests meanwhile.

200 concurrent ADDs on 256 stand-ins give the makespan. During 32 concurrent ADDs another process sends
netlink requests, one after the other, and measures each. Modes and sizes run in random order.
``SRIOV_FAST_BENCH_FLOODS`` sets the number of rounds (5). No round starts after ``SRIOV_FAST_BENCH_SECONDS``
(120). Not for the lab: a card has fewer VFs.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, NamedTuple

import pytest

import report
from bench_burst import Burst, Kind, execute, listing
from ground import ON_CARD
from sriov_fast.kernel.backend import nl
from stage import Stage, amount, pause, standing

pytestmark = pytest.mark.skipif(ON_CARD, reason="a card has fewer VFs")

ROUNDS = amount("FLOODS", 5, 1)
SECONDS = amount("SECONDS", 120, 45)
VFS, FLOOD, BURST = 256, 200, 32
MODES = ("resident", "macvlan")
PROBE_EVERY = 0.0005  # seconds between two requests of the other process


class Flood(NamedTuple):
    """A burst of ADDs, and the seconds of each request of the other process."""

    burst: Burst
    waits: list[float]


Floods = dict[tuple[str, int], list[Flood]]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with standing(vfs=VFS, pods=FLOOD) as stage:
        stage.serve("resident")
        yield stage


@pytest.fixture(scope="module")
def floods(stage: Stage) -> Floods:
    """Measure all bursts before the first report."""
    before = stage.ground.state()
    kinds = [(mode, size) for mode in MODES for size in (FLOOD, BURST)]
    found: Floods = {kind: [] for kind in kinds}
    end = time.monotonic() + SECONDS
    for number in range(max(ROUNDS, 1)):
        if number and time.monotonic() > end:
            break
        for mode, size in random.sample(kinds, len(kinds)):
            found[mode, size].append(flood(stage, mode, size))
    assert stage.ground.state() == before
    return found


def flood(stage: Stage, mode: str, size: int) -> Flood:
    """Execute a burst of ADDs, each with its own VF, and their DELs."""
    pause()
    kind = Kind(mode, size, "ADD")
    with probe() as waits:
        burst = execute(stage, kind, listing(stage, kind))
    records = stage.servers["resident"].records()
    assert len({name.partition("~")[0] for name in records}) == size
    execute(stage, kind._replace(verb="DEL"), listing(stage, kind._replace(verb="DEL")))
    return Flood(burst, waits)


@contextmanager
def probe() -> Iterator[list[float]]:
    """Set a device's MTU in a loop, as ``ip link set`` does; yield the seconds of each request."""
    waits: list[float] = []
    end = threading.Event()
    with nl.Socket() as host:  # before the burst: a list of devices that change meanwhile is incomplete
        index = next(link.index for link in host.links() if link.name == "pf0")

    def work() -> None:
        with nl.Socket() as host:
            while not end.wait(PROBE_EVERY):
                batch = nl.Batch()
                batch.set_link(index, mtu=1500)
                begin = time.monotonic()
                host.run(batch)
                waits.append(time.monotonic() - begin)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield waits
    finally:
        end.set()
        thread.join()


@report.mark
@pytest.mark.parametrize("mode", MODES)
def test_flood(benchmark: Any, floods: Floods, mode: str) -> None:
    spans = [flood.burst.makespan for flood in floods[mode, FLOOD]]
    each = [seconds for flood in floods[mode, FLOOD] for seconds in flood.burst.each]
    line = f"makespan of {FLOOD} ADDs at the same time on {VFS} VFs, IPAM host-local", mode
    report.tell(benchmark, line, spans, each_ms=report.milliseconds(median(each)), bursts=len(spans))
    if mode == "macvlan":
        report.goal(benchmark, "makespan, ms", median(spans) * 1e3, 700)


@report.mark
@pytest.mark.parametrize("mode", MODES)
def test_others_wait(benchmark: Any, floods: Floods, mode: str) -> None:
    waits = [seconds for flood in floods[mode, BURST] for seconds in flood.waits]
    p99 = report.percentile(waits, 0.99)
    line = f"ip link set of another process during {BURST} ADDs", mode
    figures = {"p99_ms": report.milliseconds(p99), "max_ms": report.milliseconds(max(waits))}
    report.tell(benchmark, line, waits, **figures)
    if mode == "macvlan":
        report.goal(benchmark, "p99, ms", p99 * 1e3, 5)
