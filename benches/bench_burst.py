"""Concurrent ADDs, as after the start of a node, compared with the same burst of the C baseline.

Each process of a burst has its own pod. The plugin chooses a VF from all free ones; the C program
(``floor.c``) gets the name of its VF. A burst of DELs follows each burst of ADDs. Each round runs the bursts
of all programs in random order and after random delays.

``SRIOV_FAST_BENCH_BURSTS`` sets the number of rounds (25, in the lab 2). No round starts after
``SRIOV_FAST_BENCH_SECONDS`` (110, in the lab 45). The lab leaves out the burst of 32 interpreters.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from statistics import median
from typing import Any, NamedTuple

import pytest

import report
from stage import IN_LAB, Case, Job, Stage, amount, pause, standing

ROUNDS = amount("BURSTS", 25, 2)
SECONDS = amount("SECONDS", 110, 45)
SIZES = (8, 32)
PROGRAMS = ("c", "resident", "compiled", "c-macvlan", "macvlan")
VERBS = ("ADD", "DEL")
TURNS = [
    (program, size)
    for program in PROGRAMS
    for size in SIZES
    if not IN_LAB or (program, size) != ("compiled", max(SIZES))
]
BY_SIZE = sorted(TURNS, key=lambda turn: turn[1])


class Kind(NamedTuple):
    program: str
    size: int
    verb: str


class Burst(NamedTuple):
    """Seconds of each process, and from the first start to the last end."""

    each: list[float]
    makespan: float


Bursts = dict[Kind, dict[int, Burst]]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with standing(vfs=max(SIZES), pods=max(SIZES)) as stage:
        stage.serve("resident")
        yield stage


@pytest.fixture(scope="module")
def bursts(stage: Stage) -> Bursts:
    """Measure all bursts before the first report."""
    listed = {kind: listing(stage, kind) for kind in (Kind(*turn, verb) for turn in TURNS for verb in VERBS)}
    before = stage.ground.state()
    if not IN_LAB:
        one_round(stage, 0, listed, {})  # warm
    found: Bursts = {}
    end = time.monotonic() + SECONDS
    for number in range(max(ROUNDS, 1)):
        if number and time.monotonic() > end:
            break
        one_round(stage, number, listed, found)
    assert stage.ground.state() == before
    return found


def listing(stage: Stage, kind: Kind) -> bytes:
    """Return the input of ``burst.c``: the processes of one burst."""
    case = Case(kind.program, "host-local", kind.verb)
    return b"".join(words(stage.job(case, pod, vf=None)) for pod in range(kind.size))


def words(job: Job) -> bytes:
    environ = [f"{name}={value}" for name, value in job.environ.items()]
    return b"".join(os.fsencode(word) + b"\0" for word in (job.stdin, *job.argv, "", *environ, ""))


def one_round(stage: Stage, number: int, listed: dict[Kind, bytes], found: Bursts) -> None:
    for program, size in random.sample(TURNS, len(TURNS)):
        for verb in VERBS:
            kind = Kind(program, size, verb)
            pause()
            found.setdefault(kind, {})[number] = execute(stage, kind, listed[kind])


def execute(stage: Stage, kind: Kind, listed: bytes) -> Burst:
    argv = [str(stage.bin / "burst"), str(kind.size)]
    done = subprocess.run(argv, input=listed, capture_output=True, check=False)
    lines = [[int(word) for word in line.split()] for line in done.stdout.splitlines()]
    assert [status for status, _, _ in lines] == [0] * kind.size, (kind, done.stdout, done.stderr)
    each = [(end - begin) / 1e9 for _, begin, end in lines]
    return Burst(each, (max(line[2] for line in lines) - min(line[1] for line in lines)) / 1e9)


# --- reports


def compared(mine: dict[int, Burst], floor: dict[int, Burst]) -> dict[str, Any]:
    """Compare the median of all processes and the makespan with those of the C baseline."""
    whole = median(burst.makespan for burst in mine.values())
    theirs = median(burst.makespan for burst in floor.values())
    figures = {"ratio": round(median(every(mine)) / median(every(floor)), 2)}
    return figures | {"makespan_ms": report.milliseconds(whole), "makespan/c": round(whole / theirs, 2)}


def every(bursts: dict[int, Burst]) -> list[float]:
    return [seconds for burst in bursts.values() for seconds in burst.each]


@report.mark
@pytest.mark.parametrize(("program", "size"), BY_SIZE)
@pytest.mark.parametrize("verb", VERBS)
def test_burst(benchmark: Any, bursts: Bursts, verb: str, size: int, program: str) -> None:
    floor_of = "c-macvlan" if program == "macvlan" else "c"
    mine, floor = bursts[Kind(program, size, verb)], bursts[Kind(floor_of, size, verb)]
    figures = compared(mine, floor) | report.spread(every(mine)) | {"bursts": len(mine)}
    line = f"{size} {verb}s at the same time, IPAM host-local", program
    report.tell(benchmark, line, every(mine), **figures)
    if (program, size, verb) == ("macvlan", 32, "ADD"):
        report.goal(benchmark, "makespan, ms", figures["makespan_ms"], 120)
    if (program, size, verb) == ("resident", 8, "ADD"):
        report.goal(benchmark, "median, times the floor's", figures["ratio"], 1.1)
