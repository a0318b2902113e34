"""Counts that do not depend on the machine's load: system calls, netlink requests and instructions of a verb.

System calls are counted with strace(1) in a resident server, instructions with valgrind's callgrind.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import median

from sriov_fast.cli import install
from stage import Case, Server, Stage, pause

# System calls that depend on the order of threads or on timers.
_VARYING = ("futex", "sched_yield", "restart_syscall", "epoll_", "sched_setaffinity", "madvise", "wait")
_SLEEPS = ("nanosleep", "clock_nanosleep", "select", "pselect6", "poll", "ppoll")
_CALL = re.compile(r"\d+ +(\w+)\(")
_COLLECTED = re.compile(r"Collected : (\d+)")
_CALLGRIND = ("valgrind", "--tool=callgrind")


def calls(stage: Stage, rounds: int) -> dict[str, float]:
    """Return the median number of a resident server's system calls and netlink requests for each verb."""
    server, output = stage.servers["resident"], stage.root / "strace"
    found: dict[str, list[int]] = {}
    for _ in range(rounds):
        for verb in ("ADD", "DEL"):
            names = traced(stage, server, Case("resident", "host-local", verb), output)
            found.setdefault(f"{verb} system calls", []).append(len(names))
            found.setdefault(f"{verb} netlink requests", []).append(names.count("sendto"))
            found.setdefault(f"{verb} sleeps", []).append(sum(name in _SLEEPS for name in names))
    return {name: median(numbers) for name, numbers in found.items()}


def traced(stage: Stage, server: Server, case: Case, output: Path) -> list[str]:
    """Return the system calls of a server for one request, including the work after the reply."""
    words = ["strace", "-f", "-qq", "-o", str(output), "-p", str(server.pid)]
    tracer = subprocess.Popen(words, stderr=subprocess.PIPE)
    try:
        pause(0.5)  # strace attaches to every thread
        stage.execute(case)
        pause(0.5)
    finally:
        tracer.terminate()
        tracer.communicate()
    names = [found[1] for found in map(_CALL.match, output.read_text().splitlines()) if found]
    return [name for name in names if not name.startswith(_VARYING)]


def instructions(stage: Stage) -> dict[str, float]:
    """Return the millions of instructions of the client, of the server, and of verbs without a server.

    The latter count the whole process, including the interpreter's start and all imports.
    """
    process = [sys.executable, "-ISXutf8", "-c", in_process("sriov")]
    client = [str(stage.bin / "client")]
    found: dict[str, float] = {"client, VERSION": counted(stage, client, Case("resident", "none", "VERSION"))}
    for verb in ("ADD", "DEL"):
        found[f"client, {verb}"] = counted(stage, client, Case("resident", "host-local", verb))
    for verb in ("ADD", "DEL"):
        found[f"{verb} in a process"] = counted(stage, process, Case("compiled", "host-local", verb))
    found |= in_server(stage, 3)
    return {f"{name}, M instructions": count / 1e6 for name, count in found.items()}


class Counted(Server):
    """A server under valgrind; its start takes about eight seconds of processor time."""

    patience = 600.0


def in_server(stage: Stage, rounds: int) -> dict[str, float]:
    """Return a server's median number of instructions for each verb, including the work after the reply."""
    output = stage.root / "callgrind"
    argv = [sys.executable, "-IXutf8", "-c", in_process("sriov-fast"), "serve"]
    words = [*_CALLGRIND, f"--callgrind-out-file={output}", prefix_of_pipes(output), *argv]
    server = Counted(words, stage.environ("counted"), stage.root / "counted.log")
    found: dict[str, list[int]] = {"ADD": [], "DEL": []}
    try:
        for verb in ("ADD", "DEL") * (rounds + 2):  # the first two rounds warm up
            stage.execute(Case("counted", "host-local", verb))
            pause(0.5)
            found[verb].append(since_last_dump(server, output))
    finally:
        server.stop()
    return {f"server, {verb}": median(numbers[2:]) for verb, numbers in found.items()}


def prefix_of_pipes(output: Path) -> str:
    """Return the option with the path of valgrind's pipes; a killed process does not remove them."""
    return f"--vgdb-prefix={output.parent}/vgdb"


def since_last_dump(server: Server, output: Path) -> int:
    """Return the instructions that valgrind has counted since the last call."""
    vgdb = ["vgdb", prefix_of_pipes(output), f"--pid={server.pid}", "dump"]
    subprocess.run(vgdb, check=True, capture_output=True)
    (dump,) = output.parent.glob(f"{output.name}.*")
    total = re.search(r"^totals: (\d+)", dump.read_text(), re.MULTILINE)
    dump.unlink()
    assert total, "valgrind wrote no total"
    return int(total[1])


def in_process(program: str) -> str:
    """Return the code that an interpreter executes in place of an executable."""
    return install.code(install.PROGRAMS[program], install.search_path())


def counted(stage: Stage, argv: list[str], case: Case) -> int:
    """Return the instructions of one execution.

    A child process that works after the reply starts with the count of its parent, and either may end first.
    The larger count is the same in every run.
    """
    job = stage.job(case)
    with open(job.stdin, "rb") as stdin:
        done = subprocess.run(
            [*_CALLGRIND, "--callgrind-out-file=/dev/null", "--vgdb=no", *argv],
            env=job.environ | {"PYTHONHASHSEED": "0", "PATH": os.environ["PATH"]},
            stdin=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
    collected = _COLLECTED.findall(done.stderr)
    assert done.returncode == 0, f"{case}: {done.stdout}{done.stderr}"
    assert collected, done.stderr
    return max(map(int, collected))
