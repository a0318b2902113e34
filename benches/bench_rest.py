"""One ADD or DEL on an idle node, compared with the minimal cost of a client and a server.

The latency of a move depends on the objects that the kernel has to free, and on their CPUs. So a pause lets
the kernel finish the work of the previous process. The C program also runs as client and server
(``served.c``) in two forms: the server runs on any CPU, or moves to its client's CPU, as ``sriov-fast serve``
does.

``SRIOV_FAST_BENCH_ROUNDS`` sets the number of rounds (150). No round starts after
``SRIOV_FAST_BENCH_SECONDS`` (110).
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

import ground
import report
from stage import IN_LAB, Case, Sample, Stage, amount, standing

ROUNDS = amount("ROUNDS", 150, 0)
SECONDS = amount("SECONDS", 110, 0)
REST = 0.05
VERBS = ("ADD", "DEL")
PROGRAMS = ("c", "elsewhere", "here", "resident")
pytestmark = pytest.mark.skipif(IN_LAB, reason="says nothing where the processor is emulated")


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with standing(vfs=1, pods=1) as stage:
        stage.rest = REST
        stage.serve("resident")
        stage.serve_floor()
        yield stage


@pytest.fixture(scope="module")
def samples(stage: Stage) -> dict[Case, dict[int, Sample]]:
    found: dict[Case, dict[int, Sample]] = {}
    end = time.monotonic() + SECONDS
    for number in range(-1, max(ROUNDS, 1)):  # round -1 warms up
        if number > 0 and time.monotonic() > end:
            break
        for program in random.sample(PROGRAMS, len(PROGRAMS)):
            for verb in VERBS:
                case = Case(program, "host-local", verb)
                found.setdefault(case, {})[number] = stage.measure(case)
    for each in found.values():
        del each[-1]
    return found


@pytest.mark.parametrize("program", PROGRAMS)
def test_all_do_the_same(stage: Stage, program: str) -> None:
    before = stage.ground.state()
    stage.execute(Case("c", "host-local", "ADD"))
    wanted = ground.pod_state(stage.ground.pods[0])
    stage.execute(Case("c", "host-local", "DEL"))
    stage.execute(Case(program, "host-local", "ADD"))
    assert ground.pod_state(stage.ground.pods[0]) == wanted
    stage.execute(Case(program, "host-local", "DEL"))
    assert stage.ground.state() == before


@report.mark
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_at_rest(benchmark: Any, samples: dict[Case, dict[int, Sample]], program: str, verb: str) -> None:
    mine, floor = (
        {number: sample.seconds for number, sample in samples[Case(each, "host-local", verb)].items()}
        for each in (program, "c")
    )
    durations = list(mine.values())
    compared = report.against(mine, floor) if program != "c" else {}
    figures = {"p10_ms": report.milliseconds(report.percentile(durations, 0.1))}
    figures["p90_ms"] = report.milliseconds(report.percentile(durations, 0.9))
    line = f"{verb} on a node at rest, IPAM host-local", program
    report.tell(benchmark, line, durations, **compared, **figures, rounds=len(durations))
