"""Effect of the settings of ``sriov-fast tune`` on moves of a veth between two namespaces.

The settings are measured in random order, and restored also after an interrupt. ``SRIOV_FAST_BENCH_ROUNDS``
reduces the number of moves (60).
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import pytest

from sriov_fast.cli.tune import SETTINGS

HERE = Path(__file__).resolve().parent
ROUNDS = min(60, int(os.environ.get("SRIOV_FAST_BENCH_ROUNDS", "60")))
BATCH = 10
# Values by setting; other settings keep their current value.
CASES = {
    "as it is": {},
    "rcu-first-fqs=0": {"rcu-first-fqs": "0"},
    "rcu-expedited=1": {"rcu-expedited": "1"},
    "rcu-first-fqs=0 rcu-expedited=1": {"rcu-first-fqs": "0", "rcu-expedited": "1"},
    "rcu-normal=1": {"rcu-normal": "1"},
}
FILES = {setting.name: Path("/sys", setting.file) for setting in SETTINGS}
NEEDED = [FILES[name] for case in CASES.values() for name in case]
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(os.access(path, os.W_OK) for path in NEEDED),
    reason="needs root, and a kernel with these settings",
)


@contextmanager
def kept(case: dict[str, str]) -> Iterator[None]:
    before = {name: FILES[name].read_text() for name in case}
    try:
        for name, value in case.items():
            FILES[name].write_text(value)
        yield
    finally:
        for name, value in before.items():
            FILES[name].write_text(value)


@pytest.fixture
def command(tmp_path: Path) -> Iterator[list[str]]:
    """Yield the command that moves a device, without the number of rounds."""
    program = tmp_path / "move"
    subprocess.run([os.environ.get("CC", "cc"), "-O2", "-o", program, HERE / "move.c"], check=True)
    names = [f"sriov-fast-{os.getpid()}-{end}" for end in "ab"]
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
        link = ["link", "add", "vf0", "type", "veth", "peer", "name", "peer0"]
        subprocess.run(["ip", "-n", names[0], *link], check=True)
        subprocess.run(["ip", "-n", names[0], "link", "set", "peer0", "up"], check=True)
        yield [str(program), *(f"/run/netns/{name}" for name in names), "vf0"]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def moved(command: list[str]) -> dict[str, list[float]]:
    """Move the device back and forth; return the milliseconds by verb."""
    done = subprocess.run([*command, str(BATCH)], check=True, capture_output=True, text=True)
    found: dict[str, list[float]] = {"add": [], "del": []}
    for verb, spent in map(str.split, done.stdout.splitlines()):
        found[verb].append(float(spent) / 1000)
    return found


def test_settings(benchmark: Any, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.group = "tune"
    times: dict[str, dict[str, list[float]]] = {name: {"add": [], "del": []} for name in CASES}
    for _ in range(max(2, ROUNDS // BATCH)):
        for name in random.sample(list(CASES), len(CASES)):
            with kept(CASES[name]):
                for verb, spent in moved(command).items():
                    times[name][verb] += spent
    for name, verbs in times.items():
        for verb, spent in verbs.items():
            low, high = quantiles(spent, n=10)[0], quantiles(spent, n=10)[-1]
            text = f"{median(spent):.1f} ms (10 %: {low:.1f}, 90 %: {high:.1f})"
            benchmark.extra_info[f"{verb}, {name}"] = text
            with capsys.disabled():  # the lab does not show the file of results
                print(f"\n{verb}, {name}: {text}", end="")
    ratio = median(times["as it is"]["add"]) / median(times["rcu-first-fqs=0"]["add"])
    benchmark.extra_info["ratio"] = round(ratio, 2)
    benchmark.pedantic(moved, args=(command,), rounds=1)
