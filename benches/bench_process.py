"""Whole ADDs and DELs, as a runtime sees them: start the executable, read its answer, wait for its end.

The VFs are veth stand-ins, or those of a card, so the kernel does real work. A C program with the same kernel
requests (``floor.c``) shows the share of that work. All programs are measured in one run. Each round executes
them in random order and after random delays. Without the delays each process would start at the phase of the
kernel's RCU in which the previous one ended, and the RCU tick would hide improvements.

``SRIOV_FAST_BENCH_ROUNDS`` sets the number of rounds (400, in the lab 12). No round starts after
``SRIOV_FAST_BENCH_SECONDS`` (190, in the lab 60). The lab leaves out the cases that take minutes there: the
executed IPAM plugin, and most of the plain backend. No time is asserted.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from statistics import fmean, median
from typing import Any, NamedTuple

import pytest

import ground
import report
from stage import IN_LAB, IPAMS, Case, Sample, Stage, amount, pause, standing

ROUNDS = amount("ROUNDS", 400, 12)
SECONDS = amount("SECONDS", 190, 60)
VERBS = ("ADD", "DEL")
START = Case("bare", "none", "start")
NOTHING = "VERSION, and a C program that does nothing"
OURS = ("resident", "compiled", "plain")


class Turn(NamedTuple):
    """Cases that run in succession, in every ``every``-th round."""

    cases: tuple[Case, ...]
    every: int


def pair(program: str, ipam: str, every: int) -> Turn:
    return Turn(tuple(Case(program, ipam, verb) for verb in VERBS), every)


def schedule(peer: str) -> list[Turn]:
    """Return all turns; a program close to the baseline runs more often, to resolve the difference."""
    turns = [pair(program, ipam, 1) for program in ("c", "resident") for ipam in ("none", "host-local")]
    turns += [pair(program, ipam, 2) for program in ("compiled",) for ipam in ("none", "host-local")]
    turns += [pair("deferred", "host-local", 2)]
    turns += [pair(program, "host-local", 1) for program in ("c-macvlan", "macvlan")]
    if "executed" in IPAMS:
        turns += [pair(program, "executed", 4) for program in ("c", "resident", "compiled")]
    turns += [pair("plain", ipam, 10) for ipam in IPAMS if ipam == "host-local" or not IN_LAB]
    turns += [Turn((Case(program, "none", "VERSION"),), 1) for program in ("c", "resident")]
    turns += [Turn((Case("compiled", "none", "VERSION"),), 4)]
    turns += [Turn((START,), 4)]
    if peer:
        turns += [pair("peer", ipam, 4) for ipam in IPAMS if ipam != "host-local"]
    return turns


# --- the measurement

Samples = dict[Case, dict[int, Sample]]  # by round; some rounds omit some cases


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    if not os.access(f"{ground.DELEGATES}/host-local", os.X_OK):
        pytest.skip("needs the plugin host-local (containernetworking-plugins)")
    with standing(vfs=2, pods=1, peer=request.config.getoption("--peer")) as stage:
        stage.serve("resident")
        stage.serve("deferred", "--defer-release")
        yield stage


@pytest.fixture(scope="module")
def samples(stage: Stage) -> Samples:
    """Measure all cases before the first report."""
    turns = schedule(stage.peer)
    slow = {"plain"} if IN_LAB else set()
    one_round(stage, 0, [turn for turn in turns if turn.cases[0].program not in slow], {})  # warm
    found: Samples = {}
    end = time.monotonic() + SECONDS
    for number in range(max(ROUNDS, 1)):
        if number and time.monotonic() > end:
            break
        one_round(stage, number, turns, found)
    return found


def one_round(stage: Stage, number: int, turns: list[Turn], samples: Samples) -> None:
    """Execute every turn of this round once, in random order."""
    mine = [turn for turn in turns if number % turn.every == 0]
    random.shuffle(mine)
    pause()
    for turn in mine:
        for case in turn.cases:
            samples.setdefault(case, {})[number] = stage.measure(case)


def times(samples: Samples, case: Case) -> dict[int, float]:
    return {number: sample.seconds for number, sample in samples[case].items()}


def tell(benchmark: Any, samples: Samples, case: Case, group: str) -> None:
    """Report one case, compared with the baseline."""
    mine = times(samples, case)
    floor = case._replace(program=floor_of(case.program), verb="VERSION" if case is START else case.verb)
    compared = report.against(mine, times(samples, floor)) if floor != case else {}
    spread = report.spread(list(mine.values()))
    line = group, case.program
    report.tell(benchmark, line, list(mine.values()), **compared, **spread, rounds=len(mine))


def floor_of(program: str) -> str:
    """Return the C program with the same kernel requests."""
    return "c-macvlan" if "macvlan" in program else "c"


def over(benchmark: Any, most: float) -> None:
    """Record the goal for the difference to the C program's time, in milliseconds."""
    report.goal(benchmark, "above the C program, ms", benchmark.extra_info["over_c_ms"], most)


# --- reports


@pytest.mark.parametrize("ipam", IPAMS)
def test_all_do_the_same(stage: Stage, ipam: str) -> None:
    """All programs leave the same pod after ADD and the same node after DEL."""
    before, seen = stage.ground.state(), {}
    programs = ("c", *(name for name in OURS if name != "plain" or not IN_LAB or ipam == "host-local"))
    for program in programs:
        stage.execute(Case(program, ipam, "ADD"))
        seen[program] = ground.pod_state(stage.ground.pods[0])
        stage.execute(Case(program, ipam, "DEL"))
        assert stage.ground.state() == before, program
    assert [seen[program] for program in programs] == [seen["c"]] * len(programs)


def whole() -> list[Any]:
    """Return the cases of ADD and DEL in the order of the tables, those of a peer included."""
    found = [
        Case(program, ipam, verb) for verb in VERBS for ipam in IPAMS for program in ("c", "peer", *OURS)
    ]
    left_out = {("peer", "host-local")} | ({("plain", "none")} if IN_LAB else set())
    return [case for case in found if (case.program, case.ipam) not in left_out]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        peer = metafunc.config.getoption("--peer")
        cases = [case for case in whole() if peer or case.program != "peer"]
        metafunc.parametrize("case", cases, ids=["-".join(reversed(case)) for case in cases])


@report.mark
def test_process(benchmark: Any, samples: Samples, case: Case) -> None:
    tell(benchmark, samples, case, f"{case.verb} as a process, IPAM {case.ipam}")
    if case.ipam == "host-local" and case.program in ("resident", "compiled"):
        most = 1.5 if case.program == "resident" else 10.0
        over(benchmark, most)


@report.mark
@pytest.mark.parametrize("program", ["deferred"])
def test_deferred_del(benchmark: Any, samples: Samples, program: str) -> None:
    """A deferred DEL replies when the VF is down and its address released, before the move."""
    case = Case(program, "host-local", "DEL")
    tell(benchmark, samples, case, "DEL as a process, IPAM host-local")
    report.goal(benchmark, "median, ms", median(times(samples, case).values()) * 1e3, 3)


@report.mark
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("program", ["c-macvlan", "macvlan"])
def test_macvlan(benchmark: Any, samples: Samples, program: str, verb: str) -> None:
    """Attach and detach a macvlan, without a move of the VF."""
    case = Case(program, "host-local", verb)
    tell(benchmark, samples, case, f"{verb} as a process, IPAM host-local")
    if program == "macvlan":
        report.goal(benchmark, "median, ms", median(times(samples, case).values()) * 1e3, 3)


@report.mark
@pytest.mark.parametrize("program", ["c", "resident", "compiled"])
def test_version(benchmark: Any, samples: Samples, program: str) -> None:
    """VERSION makes no kernel request; the C program (``nothing.c``) only starts and exits."""
    case = Case(program, "none", "VERSION")
    tell(benchmark, samples, case, NOTHING)
    if program == "resident":
        over(benchmark, 0.5)


@report.mark
def test_interpreter_alone(benchmark: Any, samples: Samples) -> None:
    """Start and end the executable's interpreter: the lower bound of every process in Python."""
    tell(benchmark, samples, START, NOTHING)


@report.mark
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("program", ["c", *OURS])
def test_processor_time(benchmark: Any, samples: Samples, program: str, verb: str) -> None:
    """Processor time of the executed process and of the server, including the kernel's work in them."""
    found = samples[Case(program, "host-local", verb)].values()
    floor = fmean(sample.cpu for sample in samples[Case("c", "host-local", verb)].values())
    both = [sample.cpu + sample.server_cpu for sample in found]
    figures = {
        "ratio": round(fmean(both) / floor, 2),
        "mean_ms": report.milliseconds(fmean(both)),
        "process_ms": report.milliseconds(fmean(sample.cpu for sample in found)),
        "server_ms": report.milliseconds(fmean(sample.server_cpu for sample in found)),
        "over_c_ms": report.milliseconds(fmean(both) - floor),
    }
    report.tell(benchmark, (f"processor time of one {verb}, IPAM host-local", program), both, **figures)
    if (program, verb) == ("resident", "ADD"):
        report.goal(benchmark, "mean, ms", fmean(both) * 1e3, 1.5)
