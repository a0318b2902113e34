"""Ratios within one run, and counts, that CI compares with limits (``make bench-ci``).

The reference of a ratio is a C program with the same kernel requests, the plain backend, a listing of the
VFs' directories (for a scrape), or ``/healthz`` (for the address service). Both are measured in turns.
Functions and verbs run in random order, verbs also at random phases of the kernel's tick.

Counts do not depend on the machine's load. They are the system calls and netlink requests of a verb in the
server, and the instructions of a verb in the server, in the client and in a process without a server.
The limits are in ``limits.toml``.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from time import thread_time
from types import ModuleType
from typing import Any

import httpx
import pytest
from ipam_server import ASK, HOST, World, roomy, wanted

import bench_burst
import counts
import report
from bench_encode import attach
from bench_scan import VFS
from harness.sysfs_tree import build_tree
from sriov_fast.common.paths import Roots
from sriov_fast.common.trace import Steps
from sriov_fast.kernel import _irq_py, _nl_py, backend
from sriov_fast.server.counts import Counts
from sriov_fast.server.metrics import Metrics
from sriov_fast.vf.irq import plan
from stage import Case, Stage, pause, standing

SOURCES = Path(__file__).resolve().parent
LIMITS = tomllib.loads((SOURCES / "limits.toml").read_text())
ROUNDS = int(os.environ.get("SRIOV_FAST_BENCH_ROUNDS", "50"))
SECONDS = 60  # after them no round after the tenth starts; half of them for bursts
OTHERS = 40  # records of other pods in the journal; an ADD that reads all of them exceeds the limits
REQUESTS = 150  # of each kind to the address service
BURST = 8
FLOORS = {"resident": "c", "macvlan": "c-macvlan"}
PROGRAMS = (*FLOORS, *FLOORS.values())
VERBS = ("ADD", "DEL")
RESAMPLES = 1000

Pairs = list[tuple[float, float]]  # seconds: (measured, reference)


def interval(pairs: Pairs) -> tuple[float, float, float]:
    """Return the ratio of the medians with its 95 % confidence interval, from bootstrap samples."""
    draw = random.Random(1)
    ratios = sorted(ratio(draw.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    return ratio(pairs), ratios[int(RESAMPLES * 0.025)], ratios[int(RESAMPLES * 0.975)]


def ratio(pairs: Pairs) -> float:
    return median(mine for mine, _ in pairs) / median(other for _, other in pairs)


def judge(benchmark: Any, name: str, pairs: Pairs) -> None:
    """Report a ratio; fail if its whole interval is above the limit."""
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


# --- functions: compiled compared with plain or C


def in_turns(mine: Callable[[], object], other: Callable[[], object], times: int, rounds: int = 60) -> Pairs:
    """Measure the processor time of two functions, ``times`` calls each in a round; three rounds warm up."""
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
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, SOURCES / "scan.c"], check=True)
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
    masks = list(plan(tree.irqs(0), range(8)).items())

    def write(module: ModuleType) -> object:
        return module.write_masks(masks, str(tree.proc))

    judge(benchmark, "masks/plain", in_turns(lambda: write(backend.irq), lambda: write(_irq_py), 1))


@report.mark
def test_scrape(benchmark: Any, tmp_path: Path) -> None:
    """Compare a scrape with 256 free VFs with listing the directory of each VF's network device."""
    tree = build_tree(tmp_path, vfs=256)
    counts = Counts()
    roots = Roots(sys=str(tree.sys), proc=str(tree.proc), run=str(tmp_path / "run"))
    metrics = Metrics(roots, counts, lambda: 0)
    steps = Steps("", "resident")
    for number in range(12):
        steps.done(f"step {number}")
    for verb in ("ADD", "DEL", "CHECK"):
        counts.served(verb, 0, b"", steps)
    directories = [f"{tree.sys}/class/net/{tree.netdev(index)}" for index in range(256)]
    judge(
        benchmark,
        "scrape/listing",
        in_turns(metrics.render, lambda: [os.listdir(each) for each in directories], 1, rounds=30),
    )


# --- whole verbs, one at a time and eight concurrently

Round = dict[tuple[str, str], float]  # seconds by program and verb


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with standing(vfs=BURST, pods=BURST) as stage:
        stage.serve("resident")
        crowd(stage)
        yield stage


def crowd(stage: Stage) -> None:
    """Write records of other pods, with VFs of another PF, to the server's journal."""
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


def repeated(turn: Callable[[], Round], rounds: int, seconds: float) -> list[Round]:
    """Return up to ``rounds`` rounds: ten, then more until ``seconds`` have passed. An extra one warms up."""
    end = time.monotonic() + seconds
    found = [turn()]
    while len(found) <= rounds and (len(found) <= 10 or time.monotonic() < end):
        found.append(turn())
    return found[1:]


def one_round(measure: Callable[[str, str], float], turns: Mapping[str, tuple[str, ...]]) -> Round:
    """Measure the verbs of each program, the programs in random order."""
    found = {}
    for program in random.sample(list(turns), len(turns)):
        for verb in turns[program]:
            pause()
            found[program, verb] = measure(program, verb)
    return found


@pytest.fixture(scope="module")
def single(stage: Stage) -> list[Round]:
    def measure(program: str, verb: str) -> float:
        return stage.measure(Case(program, "none" if verb == "VERSION" else "host-local", verb)).seconds

    turns = dict.fromkeys(PROGRAMS, VERBS) | dict.fromkeys(("resident", "c"), (*VERBS, "VERSION"))
    return repeated(lambda: one_round(measure, turns), ROUNDS, SECONDS)


@pytest.fixture(scope="module")
def bursts(stage: Stage) -> list[Round]:
    kinds = [bench_burst.Kind(program, BURST, verb) for program in PROGRAMS for verb in VERBS]
    listed = {kind: bench_burst.listing(stage, kind) for kind in kinds}

    def measure(program: str, verb: str) -> float:
        kind = bench_burst.Kind(program, BURST, verb)
        return bench_burst.execute(stage, kind, listed[kind]).makespan

    return repeated(lambda: one_round(measure, dict.fromkeys(PROGRAMS, VERBS)), ROUNDS // 3, SECONDS / 2)


def compared(rounds: list[Round], program: str, verb: str) -> Pairs:
    return [(each[program, verb], each[FLOORS[program], verb]) for each in rounds]


@report.mark
@pytest.mark.parametrize("verb", [*VERBS, "VERSION"])
def test_verb(benchmark: Any, single: list[Round], verb: str) -> None:
    judge(benchmark, f"{verb}/c", compared(single, "resident", verb))


@report.mark
@pytest.mark.parametrize("verb", VERBS)
def test_macvlan(benchmark: Any, single: list[Round], verb: str) -> None:
    judge(benchmark, f"{verb}, macvlan/c", compared(single, "macvlan", verb))


@report.mark
@pytest.mark.parametrize("verb", VERBS)
def test_burst(benchmark: Any, bursts: list[Round], verb: str) -> None:
    judge(benchmark, f"{BURST} {verb}s/c", compared(bursts, "resident", verb))


@report.mark
@pytest.mark.parametrize("verb", VERBS)
def test_burst_of_macvlans(benchmark: Any, bursts: list[Round], verb: str) -> None:
    judge(benchmark, f"{BURST} {verb}s, macvlan/c", compared(bursts, "macvlan", verb))


# --- the address service


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Pairs]]:
    """Measure a probe, an allocation and a release in turns, over one TLS connection."""
    world = World(tmp_path_factory.mktemp("ipam"))
    found: dict[str, Pairs] = {"allocate": [], "release": []}
    try:
        with world.host(world.serve("sqlite", roomy())) as client:
            for number in range(REQUESTS):
                path = f"{ASK}/b{number}/eth0"
                probe = timed(lambda: client.get("/healthz"))
                allocate = timed(lambda name=f"b{number}": client.post(ASK, json=wanted(name)))  # type: ignore[misc]
                release = timed(lambda path=path: client.delete(path, params={"host_ip": HOST}))  # type: ignore[misc]
                found["allocate"].append((allocate, probe))
                found["release"].append((release, probe))
        yield found
    finally:
        world.end()


def timed(request: Callable[[], httpx.Response]) -> float:
    begin = time.perf_counter()
    response = request()
    spent = time.perf_counter() - begin
    assert response.is_success, response.text
    return spent


@report.mark
@pytest.mark.parametrize("request_name", ["allocate", "release"])
def test_service(benchmark: Any, asked: dict[str, Pairs], request_name: str) -> None:
    judge(benchmark, f"{request_name}/healthz", asked[request_name][10:])  # the first ones warm up


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
