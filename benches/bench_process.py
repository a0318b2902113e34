"""Whole ADDs and DELs, as a runtime sees them: start the executable, read its answer, wait for its end.

On veth stand-ins, so that the kernel's work is real; a C program that asks the kernel for the same
(``floor.c``) says how much of the time that work is. All are measured in one run: each round executes every
one of them, in an order of its own and after a random delay. Without the delay each would start where the
one before it left the kernel's RCU, whose tick then hides what is gained.

``SRIOV_FAST_BENCH_ROUNDS`` sets the rounds (200); after ``SRIOV_FAST_BENCH_SECONDS`` (150) no new one begins.
Nothing is asserted about time.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pytest
from node import DELEGATES, Node

from sriov_fast.cli import install

HERE = Path(__file__).resolve().parent
ROUNDS = int(os.environ.get("SRIOV_FAST_BENCH_ROUNDS", "200"))
SECONDS = float(os.environ.get("SRIOV_FAST_BENCH_SECONDS", "150"))
RARE = 10  # the plain backend takes part in every tenth round only
DELAY = 0.012  # three ticks of a kernel with HZ=250
REST = 0.015  # what the last one left behind, such as an announcement, must not count for the next
CLONE_NEWNET = 0x40000000  # linux/sched.h
HOST_LOCAL = f"{DELEGATES}/host-local"
PROGRAMS = ("compiled", "plain", "c")
IPAMS = ("none", "host-local")


class Case(NamedTuple):
    """What is measured: ``program`` of PROGRAMS, or the bare interpreter, for one verb."""

    program: str
    ipam: str
    verb: str


START = Case("interpreter", "none", "start")


class Replay:
    """A timer that tells pytest-benchmark the durations that were measured before, in turns."""

    def __init__(self) -> None:
        self.load([])

    def load(self, durations: list[float]) -> None:
        self.times = iter([time for duration in durations for time in (0.0, duration)])

    def __call__(self) -> float:
        return next(self.times, 0.0)


replay = Replay()
pytestmark = pytest.mark.benchmark(timer=replay, disable_gc=True)


# --- the programs


class Stage:
    """The node, one pod, and the programs that attach one VF to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.node = Node(root / "node", vfs=2)
        self.pod = self.node.pod()
        self.launcher = root / "bin/sriov"
        self.floor = root / "bin/floor"
        self.bare = root / "bin/bare"
        self.launcher.parent.mkdir()
        self._compile()
        self._launchers()
        self.confs = {name: self._conf(name) for name in IPAMS}

    def _compile(self) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            pytest.skip("no C compiler")
        subprocess.run([compiler, "-O2", "-o", self.floor, HERE / "floor.c"], check=True)

    def _launchers(self) -> None:
        """Write the plugin as ``sriov-fast install`` does, and one that ends as soon as it runs."""
        program = install.PROGRAMS["sriov"]
        text = install.script(program, sys.executable, install.search_path())
        install.write_executable(self.launcher, text)
        install.compile_package()
        head = text.partition("import sys\n")[0]
        install.write_executable(self.bare, f"{head}import os\nos._exit(0)\n")

    def _conf(self, ipam: str) -> Path:
        given = None
        if ipam == "host-local":
            given = self.node.host_local(routes=[{"dst": "0.0.0.0/0"}])
        path = self.root / f"{ipam}.json"
        path.write_text(json.dumps(self.node.conf(vf=0, ipam=given)))
        return path

    def argv(self, case: Case) -> list[str]:
        if case is START:
            return [str(self.bare)]
        if case.program != "c":
            return [str(self.launcher)]
        ipam = [HOST_LOCAL] if case.ipam == "host-local" else []
        names = [f"/run/netns/{self.pod}", self.node.tree.netdev(0), "eth0"]
        return [str(self.floor), case.verb.lower(), *names, *ipam]

    def environ(self, case: Case) -> dict[str, str]:
        given = self.node.environment(case.verb, self.pod, "eth0", "bench", "")
        backend = "python" if case.program == "plain" else "cython"
        return given | {"SRIOV_FAST_BACKEND": backend}

    def execute(self, case: Case) -> tuple[float, bytes]:
        """Return the seconds from the start to the end of output and process, and the output."""
        argv, environ = self.argv(case), self.environ(case)
        stdin = os.open(self.confs[case.ipam], os.O_RDONLY | os.O_CLOEXEC)
        stderr = os.open(self.root / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        out, its_out = os.pipe()
        actions = [(os.POSIX_SPAWN_DUP2, fd, to) for to, fd in enumerate((stdin, its_out, stderr))]
        begin = time.perf_counter()
        pid = os.posix_spawn(argv[0], argv, environ, file_actions=actions)
        os.close(its_out)
        answer = b"".join(iter(lambda: os.read(out, 65536), b""))
        status = os.waitpid(pid, 0)[1]
        spent = time.perf_counter() - begin
        for fd in (stdin, stderr, out):
            os.close(fd)
        assert status == 0, f"{case}: {answer!r} {(self.root / 'stderr').read_text()}"
        return spent, answer

    def pod_state(self) -> dict[str, Any]:
        """Return what the verbs leave in the pod, without what differs from one time to the next."""
        links = json.loads(self.node.ip("-j", "-n", self.pod, "addr", "show", "dev", "eth0"))
        routes = json.loads(self.node.ip("-j", "-n", self.pod, "route"))
        keys = ("local", "prefixlen", "broadcast", "scope")
        inet = [item for item in links[0]["addr_info"] if item["family"] == "inet"]
        addresses = [{key: item[key] for key in keys if key != "local"} for item in inet]
        kept = ("dst", "gateway", "dev", "protocol", "scope", "flags")
        shown = [{key: route.get(key) for key in kept} for route in routes]
        return {"flags": links[0]["flags"], "mtu": links[0]["mtu"], "addresses": addresses, "routes": shown}


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Run in a network namespace, so that no nsenter is part of what is measured."""
    libc = ctypes.CDLL(None, use_errno=True)
    fds = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in ("/proc/thread-self/ns/net", namespace)]
    try:
        assert libc.setns(fds[1], CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        yield
    finally:
        assert libc.setns(fds[0], CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        for fd in fds:
            os.close(fd)


# --- the measurement

Samples = dict[Case, dict[int, float]]  # by round: some rounds leave the plain backend out


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not os.access(HOST_LOCAL, os.X_OK):
        pytest.skip(f"needs {HOST_LOCAL} (containernetworking-plugins)")
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="sriov-fast-bench-") as name:
        stage = Stage(Path(name))
        try:
            with inside(f"/run/netns/{stage.node.host}"):
                yield stage
        finally:
            stage.node.close()


def pause() -> None:
    time.sleep(REST + random.uniform(0, DELAY))


def one_round(stage: Stage, number: int, samples: Samples) -> None:
    """Execute ADD and DEL of every program once, in an order that nobody knows before."""
    taking_part = [name for name in PROGRAMS if name != "plain" or number % RARE == 0]
    turns = [[Case(name, ipam, verb) for verb in ("ADD", "DEL")] for name in taking_part for ipam in IPAMS]
    turns.append([START])
    random.shuffle(turns)
    for turn in turns:
        for case in turn:
            pause()
            samples.setdefault(case, {})[number] = stage.execute(case)[0]


@pytest.fixture(scope="module")
def samples(stage: Stage) -> Samples:
    """All of them, measured together before the first is reported."""
    one_round(stage, 0, {})  # warm: page cache, bytecode
    found: Samples = {}
    end = time.monotonic() + SECONDS
    for number in range(max(ROUNDS, 1)):
        if number and time.monotonic() > end:
            break
        one_round(stage, number, found)
    return found


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least this share of the values do not exceed."""
    return sorted(values)[max(0, -int(-len(values) * share // 1) - 1)]


def against(mine: dict[int, float], other: dict[int, float]) -> tuple[float, float]:
    """Return (ratio of the medians, median of the differences in ms) over the rounds that both were in."""
    both = sorted(mine.keys() & other.keys())
    ratio = median([mine[number] for number in both]) / median([other[number] for number in both])
    return round(ratio, 2), round(median([mine[number] - other[number] for number in both]) * 1e3, 2)


def report(benchmark: Any, samples: Samples, case: Case) -> None:
    durations = list(samples[case].values())
    benchmark.group = f"{case.verb} as a process, IPAM {case.ipam}"
    for name, share in {"p10_ms": 0.1, "p99_ms": 0.99}.items():
        benchmark.extra_info[name] = round(percentile(durations, share) * 1e3, 2)
    benchmark.extra_info["rounds"] = len(durations)
    floor = samples.get(Case("c", case.ipam, case.verb))
    if floor and case.program != "c":
        benchmark.extra_info["ratio"], benchmark.extra_info["over_c_ms"] = against(samples[case], floor)
    if case.program == "compiled":
        plain = samples[Case("plain", case.ipam, case.verb)]
        benchmark.extra_info["plain/compiled"] = against(plain, samples[case])[0]
    replay.load(durations)
    benchmark.pedantic(lambda: None, rounds=len(durations))


# --- what is reported


@pytest.mark.parametrize("ipam", IPAMS)
def test_all_do_the_same(stage: Stage, ipam: str) -> None:
    """What is timed must be the same work: the same pod after ADD, the same node after DEL."""
    before, seen = stage.node.state(), {}
    for program in PROGRAMS:
        stage.execute(Case(program, ipam, "ADD"))
        seen[program] = stage.pod_state()
        stage.execute(Case(program, ipam, "DEL"))
        assert stage.node.state() == before
    assert seen["compiled"] == seen["plain"] == seen["c"]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("ipam", IPAMS)
@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_process(benchmark: Any, samples: Samples, verb: str, ipam: str, program: str) -> None:
    report(benchmark, samples, Case(program, ipam, verb))


def test_interpreter_alone(benchmark: Any, samples: Samples) -> None:
    """The executable's interpreter, started and ended: no plugin in Python can be faster."""
    report(benchmark, samples, START)
