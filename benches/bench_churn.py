"""Thousands of ADDs and DELs by one server: its latency and size must not grow, and no state may remain.

A pair of the C baseline after every tenth pair shows whether the machine itself became slower. The remaining
state and the server's size are asserted, times are not. ``SRIOV_FAST_BENCH_PAIRS`` sets the number of pairs
(2000, in the lab 60).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pytest

import report
from stage import Case, Server, Stage, amount, standing

PAIRS = amount("PAIRS", 2000, 60)
WARM = max(PAIRS // 20, 10)
FLOOR_EVERY = 10
SETTLE = 0.5  # seconds in which the last announcement ends
PODS = 8
# kB by which the server may grow after the warm-up: a leak of 1.1 kB in each of 2,000 pairs exceeds it
GROWTH = 2048


class Size(NamedTuple):
    """Memory of all processes of a server in kB; descriptors and threads of its first process."""

    memory: int
    files: int
    threads: int


class Churn(NamedTuple):
    """Seconds of each ADD and DEL in order, the server's size before and after, and the remaining state."""

    times: dict[str, list[float]]
    floor: dict[str, list[float]]
    before: Size
    after: Size
    cpu: float
    left: dict[str, Any]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with standing(vfs=PODS, pods=PODS) as stage:
        stage.serve("resident")
        yield stage


def size(server: Server) -> Size:
    return Size(server.memory_kib(), len(server.files()), server.threads())


@pytest.fixture(scope="module", params=["resident", "macvlan"])
def program(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def churn(stage: Stage, program: str) -> Churn:
    server = stage.servers["resident"]
    state = stage.ground.state()
    turn(stage, program, WARM)
    time.sleep(SETTLE)
    before, cpu = size(server), server.cpu()
    times: dict[str, list[float]] = {"ADD": [], "DEL": []}
    floor: dict[str, list[float]] = {"ADD": [], "DEL": []}
    for number in range(PAIRS):
        attach(stage, program, number % PODS, times)
        if number % FLOOR_EVERY == 0:
            attach(stage, "c" if program == "resident" else "c-macvlan", number % PODS, floor)
    time.sleep(SETTLE)
    cpu = server.cpu() - cpu
    after = size(server)
    left = {"records": server.records(), "leases": leases(stage), "locks": locks(server)}
    left["changed"] = {} if stage.ground.state() == state else stage.ground.state()
    return Churn(times, floor, before, after, cpu, left)


def turn(stage: Stage, program: str, pairs: int) -> None:
    for number in range(pairs):
        attach(stage, program, number % PODS, {"ADD": [], "DEL": []})


def attach(stage: Stage, program: str, pod: int, times: dict[str, list[float]]) -> None:
    """Execute an ADD and its DEL without a pause; append the seconds to ``times``."""
    for verb, spent in times.items():
        case = Case(program, "host-local", verb)
        spent.append(stage.execute(case, stage.job(case, pod, vf=None))[0].seconds)


def leases(stage: Stage) -> list[str]:
    found = (stage.root / "ipam").glob("*/*")
    return [path.name for path in found if path.name[0].isdigit()]


def locks(server: Server) -> list[str]:
    directory = Path(server.run, "locks")
    return os.listdir(directory) if directory.exists() else []


def drift(times: list[float]) -> float:
    """Return the ratio of the last tenth's median to the first tenth's."""
    tenth = max(len(times) // 10, 1)
    return round(median(times[-tenth:]) / median(times[:tenth]), 2)


# --- reports


@report.mark
@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_no_drift(benchmark: Any, churn: Churn, program: str, verb: str) -> None:
    mine = churn.times[verb]
    figures = {"drift": drift(mine), "drift of C": drift(churn.floor[verb])}
    figures |= {"median of C, ms": report.milliseconds(median(churn.floor[verb]))} | report.spread(mine)
    line = f"ADD and DEL in turns by one server, {report.LABELS.get(program, program)}, IPAM host-local", verb
    report.tell(benchmark, line, mine, **figures, pairs=len(mine))


@report.mark
def test_no_leak(benchmark: Any, churn: Churn, program: str) -> None:
    pairs = len(churn.times["ADD"])
    figures: dict[str, object] = {
        name: f"{before} to {after}"
        for name, before, after in zip(Size._fields, churn.before, churn.after, strict=True)
    }
    figures["left behind"] = sum(map(len, churn.left.values()))
    line = (
        "the server before and after, and its processor time for a pair",
        f"{pairs} pairs, {report.LABELS.get(program, program)}",
    )
    report.tell(benchmark, line, [churn.cpu / pairs], **figures)
    assert churn.left == {"records": [], "leases": [], "locks": [], "changed": {}}
    assert churn.after.files == churn.before.files
    assert churn.after.memory - churn.before.memory <= GROWTH
