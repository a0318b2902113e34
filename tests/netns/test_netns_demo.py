"""``sriov-fast demo --netns`` works on any machine with root, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from harness.waiting import wait_for

COMMAND = [sys.executable, "-m", "sriov_fast.cli", "demo", "--netns"]


def environment(tmp_path: Path) -> dict[str, str]:
    return {"TMPDIR": str(tmp_path), "PATH": os.environ["PATH"]}


def left(pid: int, tmp_path: Path) -> list[str]:
    """Return the namespaces and files of a demo that still exist."""
    namespaces = Path("/run/netns").glob(f"sriov-fast-demo-{pid}-*")
    return [str(path) for path in (*namespaces, *tmp_path.iterdir())]


def test_an_add_and_a_del_are_shown_and_leave_nothing(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        COMMAND, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    output, errors = demo.communicate(timeout=60)
    assert (demo.returncode, errors) == (0, "")
    result = json.loads(output[output.index("\n{\n") : output.index("\n}\n") + 2])
    assert result["ips"][0]["address"] == "10.99.0.2/24"
    assert "CNI_COMMAND=DEL" in output
    assert left(demo.pid, tmp_path) == []


def test_a_demo_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    demo = subprocess.Popen(COMMAND, env=environment(tmp_path), stdout=subprocess.DEVNULL)
    wait_for(lambda: left(demo.pid, tmp_path), "the demo makes nothing")
    demo.send_signal(signal.SIGTERM)
    assert demo.wait(30) in (130, 0)
    assert left(demo.pid, tmp_path) == []


def test_without_root_it_says_so() -> None:
    """The user changes after the imports, since another user may have no access to the checkout."""
    code = "import os; from sriov_fast.cli import demo, main; os.setuid(65534); raise SystemExit(main())"
    argv = [sys.executable, "-c", code, *COMMAND[3:]]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "needs root" in done.stderr
