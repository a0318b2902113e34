"""Run the test tiers concurrently, and fail when one fails or runs nothing.

The guest of the lab boots while the other tiers run. The output of a tier goes to REPORTS/TIER/output.log,
and the end of a failed tier's output is printed. A tier that skips every test fails. When all tiers have
ended, up to three failed tests of a tier are repeated alone. A test that passes then is counted and named as
``once``, so that the load of the machine alone does not fail a run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

TOP = Path(__file__).resolve().parent.parent
# Two cards, so that there is a choice of PFs; CORES=1,2,3,4 names four cores besides the first. The IOMMU is
# for vfio-pci and costs nothing measurable.
LAB = ("--image", "--iommu", "--pfs", "2", "--cpus", "5", "--timeout", "3000")
TIERS = ("plain", "netns", "lab")
PATHS = {tier: f"tests/{tier}" for tier in TIERS}
# For two CPUs. One thread emulates the guest, so the lab's tier takes longest and has the highest priority.
NICE = {"netns": 10, "plain": 15}
REPEATED = ("plain", "netns")
AGAIN = 3  # the most failed tests of a tier to repeat; more are no effect of the load
TICK = 0.5  # seconds between two polls of the processes
PROGRESS = 30.0  # seconds between two lines of progress
GRACE = 20.0  # seconds for a tier to clean up after SIGINT
MEMORY = "/dev/shm"
SPACE = 2 << 30  # bytes; the largest tier leaves 200 MB
TAIL = 80  # lines of a failed tier's output to print


class Count(NamedTuple):
    """The result of one tier."""

    tier: str
    passed: int
    failed: int
    skipped: int
    seconds: float
    status: int
    once: int = 0  # passed tests that failed first and passed when repeated

    @property
    def ran(self) -> int:
        """The number of tests that were not skipped."""
        return self.passed + self.failed

    @property
    def well(self) -> bool:
        """Return whether tests ran and all of them passed."""
        return self.status == 0 and self.failed == 0 and self.ran > 0

    def with_once(self, once: int) -> Count:
        """Return the result with some failed tests that passed when they were repeated."""
        failed = self.failed - once
        status = self.status if failed else 0
        return self._replace(passed=self.passed + once, failed=failed, status=status, once=once)


class Run:
    """A tier in progress: a process that writes to a file; with ``again``, only its failed tests."""

    def __init__(self, tier: str, reports: Path, again: bool = False) -> None:
        self.tier = tier
        self.report = reports / tier / ("again.xml" if again else "junit.xml")
        self.output = reports / tier / ("again.log" if again else "output.log")
        self.report.parent.mkdir(exist_ok=True)
        self.report.unlink(missing_ok=True)
        self.count: Count | None = None
        argv = command(tier, self.report, again)
        print(f"{tier}: {' '.join(argv)} > {self.output}", flush=True)
        self._begin = time.monotonic()
        with self.output.open("wb") as file:
            self._process = subprocess.Popen(
                argv,
                cwd=TOP,
                env=with_bytecode() | ({} if tier == "lab" else in_memory()),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    def poll(self) -> bool:
        """Return whether the tier has ended; its result is in ``count`` then."""
        status = self._process.poll()
        if status is not None and self.count is None:
            self.count = Count(self.tier, *read(self.report), time.monotonic() - self._begin, status)
        return status is not None

    def progress(self) -> str:
        """Return the tier with its result, or with the share of its tests that pytest has run."""
        if self.count:
            return f"{self.tier} {'passed' if self.count.well else 'FAILED'}"
        shares = re.findall(r"\[ *(\d+)%\]", self.text())
        return f"{self.tier} {shares[-1] if shares else 0} %"

    def failed(self) -> set[str]:
        """Return the names of the failed tests from pytest's cache for --last-failed."""
        try:
            return set(json.loads((cache(self.report) / "v/cache/lastfailed").read_bytes()))
        except FileNotFoundError:
            return set()

    def text(self) -> str:
        """Return the output of the tier."""
        return self.output.read_text(errors="replace")

    def stop(self) -> None:
        """Wait for the process, which the terminal interrupts as well; terminate it after ``GRACE``."""
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            self._process.wait()


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--reports", type=Path, default=Path(".reports"), help="directory for reports and output"
    )
    parser.add_argument("--tier", action="append", choices=TIERS, help="only this one, may be repeated")
    args = parser.parse_args()
    reports = args.reports.resolve()
    reports.mkdir(parents=True, exist_ok=True)
    if as_root():
        subprocess.run(
            ["sudo", "-v"], check=True
        )  # asks for a password once, before the tiers run concurrently
    with started(args.tier or TIERS, reports) as runs:
        wait(runs)
        for run in runs:
            if run.count and not run.count.well:
                print(f"\n--- {run.tier}: the end of {run.output}\n" + tail(run.text()), flush=True)
        counts = [repeated(run, reports) for run in runs]
    print("\n" + "\n".join(table(counts)), flush=True)
    return 0 if all(count.well for count in counts) else 1


@contextmanager
def started(tiers: Sequence[str], reports: Path, again: bool = False) -> Iterator[list[Run]]:
    """Start the tiers; at the end of the block, stop those that still run."""
    runs: list[Run] = []
    try:
        for tier in tiers:
            runs.append(Run(tier, reports, again))
        yield runs
    finally:
        for run in runs:
            run.stop()


def wait(runs: Sequence[Run]) -> None:
    """Wait for all tiers; print a line every ``PROGRESS`` seconds, and when a tier ends."""
    begin = shown = time.monotonic()
    ended = 0
    while ended < len(runs):
        time.sleep(TICK)
        now, before = time.monotonic(), ended
        ended = sum(run.poll() for run in runs)
        if ended > before or now - shown >= PROGRESS:
            shown = now
            print(f"{now - begin:5.0f} s: {', '.join(run.progress() for run in runs)}", flush=True)


def repeated(run: Run, reports: Path) -> Count:
    """Repeat the failed tests of a tier if they are at most ``AGAIN``; return the corrected count."""
    assert run.count
    failed = run.failed()
    if run.tier not in REPEATED or run.count.status != 1 or not 0 < len(failed) <= AGAIN:
        return run.count
    with started((run.tier,), reports, again=True) as (again,):
        wait((again,))
        assert again.count
        once = failed - again.failed() if again.count.passed + again.count.failed == len(failed) else set()
        print("".join(f"passed when repeated: {name}\n" for name in sorted(once)), end="")
        if len(once) < len(failed):
            print(f"\n--- {run.tier}: the end of {again.output}\n" + tail(again.text()), flush=True)
    return run.count.with_once(len(once))


def tail(text: str) -> str:
    """Return the last lines of a text."""
    return "\n".join(text.splitlines()[-TAIL:])


def cache(report: Path) -> Path:
    """Return a directory for pytest's cache; concurrent tiers have separate ones."""
    return report.parent / "cache"


def command(tier: str, report: Path, again: bool = False) -> list[str]:
    """Return the command that runs a tier, or its failed tests ``again``, and writes its report."""
    pytest = ["nice", "-n", str(NICE.get(tier, 0)), sys.executable, "-m", "pytest", "-q", "--durations=25"]
    pytest += ["-o", "tmp_path_retention_policy=failed"]  # frees tmpfs
    pytest += ["-o", f"cache_dir={cache(report)}"]
    pytest += ["--last-failed", "--last-failed-no-failures=none"] if again else ["--cache-clear"]
    if tier == "plain":
        return [*pytest, f"--junitxml={report}", PATHS[tier]]
    if tier == "netns":
        pytest += ["-p", "no:schemathesis"]  # it takes seconds to import
        return [*as_root(), *pytest, f"--junitxml={report}", PATHS[tier]]
    if os.environ.get("SRIOV_FAST_PF"):  # a real card of this machine, in place of the lab's
        return [*as_root(), *pytest, f"--junitxml={report}", PATHS[tier]]
    lab = [sys.executable, "-m", "lab", "pytest", *LAB, "--output", str(report.parent)]
    return [*as_root(), *lab, "--", "-q", "--durations=25"]


def with_bytecode() -> dict[str, str]:
    """Return the environment without PYTHONDONTWRITEBYTECODE, so that pytest keeps compiled tests."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


def in_memory() -> dict[str, str]:
    """Return the variables that put the tests' files on tmpfs: databases then need no disk access.

    Return none if there is too little space, or if programs cannot be executed there.
    """
    try:
        space = os.statvfs(MEMORY)
    except FileNotFoundError:
        return {}
    enough = space.f_bavail * space.f_frsize >= SPACE and not space.f_flag & os.ST_NOEXEC
    # sudo removes TMPDIR from the environment; pytest reads the other one
    return dict.fromkeys(("TMPDIR", "PYTEST_DEBUG_TEMPROOT"), MEMORY) if enough else {}


def as_root() -> list[str]:
    """Return the prefix of a command that needs root; sudo's -E keeps the environment."""
    return [] if os.geteuid() == 0 else ["sudo", "-E"]


def read(report: Path) -> tuple[int, int, int]:
    """Return (passed, failed, skipped) of a JUnit file; all are 0 if there is none."""
    passed = failed = skipped = 0
    if report.is_file():
        for case in ET.parse(report).iter("testcase"):
            outcome = {child.tag for child in case}
            failed += bool(outcome & {"failure", "error"})
            skipped += "skipped" in outcome
            passed += not outcome & {"failure", "error", "skipped"}
    return passed, failed, skipped


def table(counts: list[Count]) -> list[str]:
    """Return the summary; programs read its last line."""
    lines = [f"{'tier':<8}{'ran':>6}{'passed':>8}{'once':>6}{'failed':>8}{'skipped':>9}{'seconds':>9}"]
    for count in counts:
        numbers = f"{count.ran:>6}{count.passed:>8}{count.once:>6}{count.failed:>8}{count.skipped:>9}"
        numbers += f"{count.seconds:>9.0f}"
        lines.append(f"{count.tier:<8}{numbers}{remark(count)}")
    passed, failed, skipped = (sum(column) for column in zip(*(count[1:4] for count in counts), strict=True))
    return [*lines, f"{passed} passed, {failed} failed, {skipped} skipped"]


def remark(count: Count) -> str:
    """Return a note on a tier that failed."""
    if count.ran == 0:
        return "  FAILED: ran nothing"
    if count.status and not count.failed:
        return f"  FAILED: exit status {count.status}"
    return "" if count.well else "  FAILED"


if __name__ == "__main__":
    sys.exit(main())
