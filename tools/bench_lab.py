"""Run the benchmarks of latency in the lab, on VFs of SR-IOV cards, if the lab's guest is built."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from lab import tree

TOP = Path(__file__).resolve().parent.parent
NAMES = ("process", "burst", "churn", "waterfall", "echo", "traffic", "cri")
# 5 PFs have 35 VFs; a burst needs 32.
MACHINE = ("--pfs", "5", "--timeout", "1500")
REPORT = "benchmarks.json"


def command(output: Path) -> list[str]:
    """Return the command that boots the guest, measures, and writes REPORT and a picture to ``output``."""
    pytest = ["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    files = [f"benches/bench_{name}.py" for name in NAMES]
    words = shlex.join([*pytest, *files, "--benchmark-quiet"])
    where = f'--benchmark-json="$SRIOV_FAST_OUT/{REPORT}" --picture="$SRIOV_FAST_OUT/waterfall-add.svg"'
    lab = [sys.executable, "-m", "lab", "run", *MACHINE, "--output", str(output)]
    return [*lab, "--", "sh", "-c", f"exec {words} {where}"]


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="directory for the report")
    output = parser.parse_args().output.resolve()
    if not tree.place().root.is_dir():
        print("no figures of a real card: the lab is not built (python -m lab build)")
        return 0
    output.mkdir(parents=True, exist_ok=True)
    status = subprocess.run(command(output), cwd=TOP, stdin=subprocess.DEVNULL, check=False).returncode
    if status == 0:
        print("\nIn the lab, on VFs of Intel 82576 cards:\n", flush=True)
        subprocess.run([sys.executable, TOP / "tools/bench_table.py", output / REPORT], check=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
