"""The undo of an ADD in the server after its client has ended without the reply."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.veth import ResidentNode, held_up, let_go, waits
from harness.waiting import wait_for

pytestmark = pytest.mark.modes("resident")


def undone(node: ResidentNode, **more: Any) -> None:
    """Attach a pod, kill the client before the reply, and wait for the undo."""
    held_up(node, DEL='readlink /proc/$$/fd/2 > "$ROOT/stderr"')
    pod = node.pod()
    process = node.start("ADD", node.conf(ipam={"type": "host-local", "delegate": True}, **more), pod)
    waits(node, pod)
    process.kill()
    node.finish(process)
    let_go(node)
    wait_for(lambda: not node.records() and node.calls() == ["ADD", "DEL"], "the ADD is not undone")


def test_the_log_file_is_closed(node: ResidentNode) -> None:
    """The undo closes the log file that it has opened."""
    file = node.root / "log"
    undone(node, logFile=str(file))
    wait_for(lambda: "msg=released" in file.read_text(), "nothing is logged")
    wait_for(lambda: str(file) not in node.server.files(), "the log file stays open", 5.0)


def test_ipam_writes_to_the_servers_stderr(node: ResidentNode) -> None:
    """During the undo the IPAM plugin's stderr is the server's, since the client's is closed."""
    undone(node)
    assert Path((node.root / "stderr").read_text().strip()) == node.server.log
