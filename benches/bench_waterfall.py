"""Time of each step of an ADD or DEL, from the run with the median time, also as a picture.

``--picture FILE`` names the SVG to write: an ADD by the resident server and one without a server, on one
scale. The plugin measures its steps itself (``SRIOV_FAST_TRACE``), which takes a tenth of a millisecond.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from statistics import median_low
from typing import Any

import pytest

import report
from sriov_fast.cli import waterfall
from sriov_fast.cli.waterfall import Waterfall
from stage import Case, Stage, amount, pause, standing

ROUNDS = amount("TRACES", 41, 5)
PROGRAMS = ("resident", "compiled")
VERBS = ("ADD", "DEL")

Traced = dict[Case, list[Waterfall]]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with standing(vfs=2, pods=1) as stage:
        stage.serve("resident")
        yield stage


@pytest.fixture(scope="module")
def traced(stage: Stage) -> Traced:
    found: Traced = {}
    for number in range(ROUNDS + 1):
        for program in random.sample(PROGRAMS, len(PROGRAMS)):
            for verb in VERBS:
                case = Case(program, "host-local", verb)
                one = trace(stage, case)
                if number:  # round 0 warms up
                    found.setdefault(case, []).append(one)
    return found


def trace(stage: Stage, case: Case) -> Waterfall:
    path = stage.root / "trace.json"
    job = stage.job(case)
    pause()
    sample, _ = stage.execute(case, job._replace(environ=job.environ | {"SRIOV_FAST_TRACE": str(path)}))
    document = json.loads(path.read_text())
    path.unlink()
    end = sample.begin + round(sample.seconds * 1e9)
    return waterfall.assemble(document, case.verb, sample.begin, end)


def typical(items: list[Waterfall]) -> Waterfall:
    """Return the item with the median total time."""
    middle = median_low([item.total for item in items])
    return next(item for item in items if item.total == middle)


@report.mark
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_steps(benchmark: Any, traced: Traced, program: str, verb: str) -> None:
    items = traced[Case(program, "host-local", verb)]
    shares = typical(items).shares()
    figures = {f"{waterfall.LOOKS[kind].text}_ms": round(spent / 1e6, 2) for kind, spent in shares.items()}
    line = f"where the time of the median {verb} goes, IPAM host-local", program
    report.tell(benchmark, line, [item.total / 1e9 for item in items], **figures)


def test_picture(traced: Traced, request: pytest.FixtureRequest) -> None:
    items = [typical(traced[Case(program, "host-local", "ADD")]) for program in PROGRAMS]
    assert [item.mode for item in items] == ["resident", "in-process"]
    for item in items:
        assert {"kernel", "ours"} <= set(item.shares())
    picture = request.config.getoption("--picture")
    if picture:
        Path(picture).write_text(waterfall.svg(items))
