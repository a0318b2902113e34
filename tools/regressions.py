"""Apply known regressions, one at a time, to a copy of the sources; ``make bench-ci`` must fail with each.

Usage: python -m tools.regressions [NAME ...]; without names, all of them. Needs root and a built checkout.
Prints the figures that exceed their limits. The exit status is 1 if a regression exceeds none.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

TOP = Path(__file__).resolve().parents[1]
ADD = "sriov_fast/plugin/add.py"
IMPORTS = "from contextlib import ExitStack\n"
CONFIGURE = "    mode.configure(access.host, record)\n"
_EXCEEDED = re.compile(r"^E\s+AssertionError: (.*, at most .*)$", re.MULTILINE)


class Regression(NamedTuple):
    """A change of one file below ``src``: ``new`` replaces ``old``."""

    path: str
    old: str
    new: str


REGRESSIONS = {
    "import": Regression(ADD, IMPORTS, IMPORTS + "import asyncio\n"),
    "request": Regression(ADD, CONFIGURE, CONFIGURE + "    access.host.addresses(record.ifindex)\n"),
    "sleep": Regression(ADD, CONFIGURE, CONFIGURE + "    __import__('time').sleep(0.002)\n"),
    "scan": Regression(ADD, CONFIGURE, CONFIGURE + "    call.journal.all()\n"),
    "plain": Regression("sriov_fast/kernel/backend.py", 'if wanted != "python":', 'if wanted == "cython":'),
}


def main() -> int:
    """Run the command line and return the exit status."""
    names = sys.argv[1:] or list(REGRESSIONS)
    caught = {name: exceeded(REGRESSIONS[name]) for name in names}
    for name, figures in caught.items():
        print(f"{name}: {'; '.join(figures) or 'NOT CAUGHT'}")
    return 0 if all(caught.values()) else 1


def exceeded(regression: Regression) -> list[str]:
    """Return the messages of the limits that a regression exceeds."""
    with tempfile.TemporaryDirectory(prefix="sriov-fast-regression-") as name:
        copy = Path(name, "src")
        shutil.copytree(TOP / "src", copy, ignore=shutil.ignore_patterns("__pycache__"))
        change(copy, regression)
        # Only the processes of this mount namespace see the copy in place of the sources.
        script = 'mount --bind "$1" src && exec make -s bench-ci REPORTS="$2"'
        command = ["unshare", "--mount", "sh", "-ec", script, "sh", str(copy), name]
        done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    figures = sorted(set(_EXCEEDED.findall(done.stdout)))
    if done.returncode and not figures:
        sys.exit(f"the benchmarks did not run:\n{done.stdout}{done.stderr}")
    return figures


def change(copy: Path, regression: Regression) -> None:
    """Write the regression to the copy."""
    path = copy / regression.path
    text = path.read_text()
    if text.count(regression.old) != 1:
        sys.exit(f"{regression.path} has not exactly one {regression.old!r}")
    path.write_text(text.replace(regression.old, regression.new))


if __name__ == "__main__":
    sys.exit(main())
