"""Run the test tiers, and fail when one fails or runs nothing.

A tier that skips everything looks well and says nothing, so its count matters as much as its result.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

TOP = Path(__file__).resolve().parent.parent
# Two cards, so that there is a choice of PFs; CORES=1,2,3,4 names four cores besides the first.
LAB = ("--pfs", "2", "--cpus", "5", "--timeout", "2400")
TIERS = ("plain", "netns", "lab")


class Count(NamedTuple):
    """How one tier went."""

    tier: str
    passed: int
    failed: int
    skipped: int
    seconds: float
    status: int

    @property
    def ran(self) -> int:
        """Those that were not skipped."""
        return self.passed + self.failed

    @property
    def well(self) -> bool:
        """Whether it ran, and ran well."""
        return self.status == 0 and self.failed == 0 and self.ran > 0


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reports", type=Path, default=Path(".reports"), help="directory for JUnit files")
    parser.add_argument("--tier", action="append", choices=TIERS, help="only this one, may be repeated")
    args = parser.parse_args()
    reports = args.reports.resolve()
    reports.mkdir(parents=True, exist_ok=True)
    counts = [run(tier, reports) for tier in args.tier or TIERS]
    print("\n" + "\n".join(table(counts)), flush=True)
    return 0 if all(count.well for count in counts) else 1


def run(tier: str, reports: Path) -> Count:
    """Run one tier; its output goes where ours goes."""
    report = reports / tier / "junit.xml"
    report.parent.mkdir(exist_ok=True)
    report.unlink(missing_ok=True)
    argv = command(tier, report)
    print(f"\n--- {tier}: {' '.join(argv)}", flush=True)
    begin = time.monotonic()
    status = subprocess.run(argv, cwd=TOP, stdin=subprocess.DEVNULL, check=False).returncode
    return Count(tier, *read(report), time.monotonic() - begin, status)


def command(tier: str, report: Path) -> list[str]:
    """Return the command that runs a tier and leaves its report."""
    pytest = [sys.executable, "-m", "pytest", "-q", "--durations=5"]
    if tier == "plain":
        return [*pytest, f"--junitxml={report}", "tests/plain", "tests/field/plain"]
    if tier == "netns":
        return [*as_root(), *pytest, f"--junitxml={report}", "tests/netns", "tests/field/netns"]
    if os.environ.get("SRIOV_FAST_PF"):  # a real card of this machine, in place of the lab's
        return [*as_root(), *pytest, f"--junitxml={report}", "tests/lab", "tests/field/lab"]
    lab = [sys.executable, "-m", "lab", "pytest", *LAB, "--output", str(report.parent)]
    return [*as_root(), *lab, "--", "-q", "--durations=5"]


def as_root() -> list[str]:
    """Return what goes before a command that needs root; sudo's -E keeps our settings."""
    return [] if os.geteuid() == 0 else ["sudo", "-E"]


def read(report: Path) -> tuple[int, int, int]:
    """Return (passed, failed, skipped) of a JUnit file; nothing ran where there is none."""
    passed = failed = skipped = 0
    if report.is_file():
        for case in ET.parse(report).iter("testcase"):
            outcome = {child.tag for child in case}
            failed += bool(outcome & {"failure", "error"})
            skipped += "skipped" in outcome
            passed += not outcome & {"failure", "error", "skipped"}
    return passed, failed, skipped


def table(counts: list[Count]) -> list[str]:
    """Return the summary, its last line to be read by machines."""
    lines = [f"{'tier':<8}{'ran':>6}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}"]
    for count in counts:
        numbers = f"{count.ran:>6}{count.passed:>8}{count.failed:>8}{count.skipped:>9}{count.seconds:>9.0f}"
        lines.append(f"{count.tier:<8}{numbers}{remark(count)}")
    passed, failed, skipped = (sum(column) for column in zip(*(count[1:4] for count in counts), strict=True))
    return [*lines, f"{passed} passed, {failed} failed, {skipped} skipped"]


def remark(count: Count) -> str:
    """Say what the numbers do not."""
    if count.ran == 0:
        return "  FAILED: ran nothing"
    if count.status and not count.failed:
        return f"  FAILED: exit status {count.status}"
    return "" if count.well else "  FAILED"


if __name__ == "__main__":
    sys.exit(main())
