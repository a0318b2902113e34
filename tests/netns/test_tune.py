"""``sriov-fast tune`` on this machine's kernel: it applies a setting and restores it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FILE = Path("/sys/module/rcutree/parameters/jiffies_till_first_fqs")
pytestmark = pytest.mark.skipif(not os.access(FILE, os.W_OK), reason=f"needs a kernel with {FILE}")


@pytest.fixture
def before() -> Iterator[str]:
    """Set the parameter to a value that ``tune`` changes; restore the parameter after the test."""
    found = FILE.read_text()
    try:
        FILE.write_text("2")
        yield "2"
    finally:
        FILE.write_text(found)


def tune(run: Path, *words: str) -> dict[str, dict[str, str]]:
    """Run the command as an operator does; return the settings by their names."""
    done = subprocess.run(
        [sys.executable, "-m", "sriov_fast.cli", "tune", "--json", *words],
        env=dict(os.environ) | {"SRIOV_FAST_RUN": str(run), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return {item["name"]: item for item in json.loads(done.stdout)["settings"]}


def test_set_and_put_back(tmp_path: Path, before: str) -> None:
    shown = tune(tmp_path)["rcu-first-fqs"]
    assert (shown["now"], shown["before"]) == (before, None)
    for _ in range(2):
        done = tune(tmp_path, "--apply", "rcu-first-fqs")["rcu-first-fqs"]
        assert (done["now"], done["before"]) == ("0", before)
        assert FILE.read_text().strip() == "0"
    restored = tune(tmp_path, "--restore")["rcu-first-fqs"]
    assert (restored["now"], restored["before"]) == (before, None)
    assert FILE.read_text().strip() == before
    assert not (tmp_path / "tuned.json").exists()
