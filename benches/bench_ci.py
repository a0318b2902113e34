"""What CI compares with limits (``make bench-ci``): ratios within one run, and counts.

A ratio is ours to a C program that asks the kernel for the same, or to the plain backend. Both are measured
in turns, in random order and at random phases of the kernel's tick. Counts do not depend on the machine's
load: system calls and netlink requests of a verb in the server, instructions of a verb in a process.
``limits.toml`` has the limits.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import thread_time
from types import ModuleType
from typing import Any

import pytest

import counts
import report
from bench_encode import attach
from bench_scan import VFS
from harness.sysfs_tree import build_tree
from sriov_fast.kernel import _irq_py, _nl_py, backend
from stage import Case, Stage, pause, standing

HERE = Path(__file__).resolve().parent
LIMITS = tomllib.loads((HERE / "limits.toml").read_text())
ROUNDS = int(os.environ.get("SRIOV_FAST_BENCH_ROUNDS", "50"))
SECONDS = 75  # after these no new round of processes begins
OTHERS = 40  # records of other pods in the journal: what reads them all is seen
VERBS = ("ADD", "DEL", "VERSION")
RESAMPLES = 1000

Pairs = list[tuple[float, float]]  # (ours, the other one's), seconds


def interval(pairs: Pairs) -> tuple[float, float, float]:
    """Return the ratio of the medians with its 95 % confidence interval, from bootstrap samples."""
    draw = random.Random(1)
    ratios = sorted(ratio(draw.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    return ratio(pairs), ratios[int(RESAMPLES * 0.025)], ratios[int(RESAMPLES * 0.975)]


def ratio(pairs: Pairs) -> float:
    return median(mine for mine, _ in pairs) / median(other for _, other in pairs)


def judge(benchmark: Any, name: str, pairs: Pairs) -> None:
    """Report a ratio; fail if its interval lies above its limit."""
    found, low, high = interval(pairs)
    limit = LIMITS["ratios"][name]
    benchmark.group = "ratios"
    report.tell(
        benchmark,
        ("ratios", name),
        [mine for mine, _ in pairs],
        ratio=round(found, 3),
        low=round(low, 3),
        high=round(high, 3),
        limit=limit,
    )
    assert low <= limit, (
        f"{name}: {found:.3f} ({low:.3f} to {high:.3f}) times the other one's, at most {limit}"
    )


# --- functions: compiled against plain, or C


def in_turns(mine: Callable[[], object], other: Callable[[], object], times: int, rounds: int = 60) -> Pairs:
    """Take the processor time of two functions in turns, ``times`` calls each; the first rounds warm up."""
    found = []
    for number in range(rounds + 3):
        both = [0.0, 0.0]
        for which in random.sample((0, 1), 2):
            call = (mine, other)[which]
            begin = thread_time()
            for _ in range(times):
                call()
            both[which] = thread_time() - begin
        if number >= 3:
            found.append((both[0], both[1]))
    return found


@report.mark
def test_encode(benchmark: Any) -> None:
    judge(benchmark, "encode/plain", in_turns(lambda: attach(backend.nl), lambda: attach(_nl_py), 20))


@report.mark
def test_scan(benchmark: Any, tmp_path: Path) -> None:
    tree = build_tree(tmp_path, vfs=64)
    library = tmp_path / "scan.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, HERE / "scan.c"], check=True)
    scan = ctypes.CDLL(str(library)).scan
    words = os.fsencode(tree.sys), tree.pf.encode(), VFS
    judge(
        benchmark,
        "scan/c",
        in_turns(lambda: backend.sysfs.scan(tree.pf, str(tree.sys)), lambda: scan(*words), 3),
    )


@report.mark
def test_masks(benchmark: Any, tmp_path: Path) -> None:
    tree = build_tree(tmp_path, vfs=1, irqs_per_vf=64)
    masks = [(irq, backend.irq.cpu_mask([irq % 8])) for irq in tree.irqs(0)]

    def write(module: ModuleType) -> object:
        return module.write_masks(masks, str(tree.proc))

    judge(benchmark, "masks/plain", in_turns(lambda: write(backend.irq), lambda: write(_irq_py), 3))


# --- whole verbs


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with standing(vfs=8, pods=8) as stage:
        stage.serve("resident")
        crowd(stage)
        yield stage


def crowd(stage: Stage) -> None:
    """Write the records of other pods' VFs, of another PF, to the server's journal."""
    stage.execute(Case("resident", "host-local", "ADD"))
    server = stage.servers["resident"]
    (name,) = server.records()
    content = (server.run / "vfs" / name).read_text()
    pci, container, ifname = name.split("~")
    for number in range(OTHERS):
        other_pci, other = f"0000:81:{number >> 3:02x}.{number & 7}", f"other-{number}"
        text = content.replace(pci, other_pci).replace(container, other)
        (server.run / "vfs" / f"{other_pci}~{other}~{ifname}").write_text(text)
    stage.execute(Case("resident", "host-local", "DEL"))


@pytest.fixture(scope="module")
def pairs(stage: Stage) -> dict[str, Pairs]:
    """Execute the resident plugin and the C program in turns."""
    found: dict[str, Pairs] = {verb: [] for verb in VERBS}
    end = time.monotonic() + SECONDS
    for number in range(ROUNDS + 1):
        if number > 10 and time.monotonic() > end:
            break
        times: dict[Case, float] = {}
        for program in random.sample(("resident", "c"), 2):
            for verb in VERBS:
                case = Case(program, "none" if verb == "VERSION" else "host-local", verb)
                pause()
                times[case] = stage.measure(case).seconds
        if number:  # the first one warms up
            for verb in VERBS:
                mine, other = (
                    next(t for c, t in times.items() if c[::2] == (p, verb)) for p in ("resident", "c")
                )
                found[verb].append((mine, other))
    return found


@report.mark
@pytest.mark.parametrize("verb", VERBS)
def test_verb(benchmark: Any, pairs: dict[str, Pairs], verb: str) -> None:
    judge(benchmark, f"{verb}/c", pairs[verb])


# --- counts


@pytest.fixture(scope="module")
def counted(stage: Stage) -> dict[str, float]:
    return counts.calls(stage, 5)


@report.mark
@pytest.mark.parametrize("name", LIMITS["counts"])
def test_count(benchmark: Any, request: pytest.FixtureRequest, name: str) -> None:
    found = request.getfixturevalue("instructions" if "instructions" in name else "counted")[name]
    limit = LIMITS["counts"][name]
    report.tell(benchmark, ("counts", name), [1.0], count=round(found, 3), limit=limit)
    assert found <= limit, f"{name}: {found:.2f}, at most {limit}"


@pytest.fixture(scope="module")
def instructions(stage: Stage) -> dict[str, float]:
    if not shutil.which("valgrind"):
        pytest.skip("needs valgrind")
    return counts.instructions(stage)
