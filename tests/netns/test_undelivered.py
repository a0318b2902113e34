"""What an ADD leaves in the server if its client is gone before the reply."""

from __future__ import annotations

import pytest

from harness.veth import ResidentNode, held_up, let_go, waits
from harness.waiting import wait_for

pytestmark = pytest.mark.modes("resident")


def test_the_log_file_is_closed(node: ResidentNode) -> None:
    """The undo opened the log file again, and the server kept the descriptor."""
    held_up(node)
    pod, file = node.pod(), node.root / "log"
    conf = node.conf(ipam={"type": "host-local", "delegate": True}, logFile=str(file))
    process = node.start("ADD", conf, pod)
    waits(node, pod)
    process.kill()
    node.finish(process)
    let_go(node)
    wait_for(lambda: file.exists() and "msg=released" in file.read_text(), "the ADD is not undone")
    wait_for(lambda: str(file) not in node.server.files(), "the log file stays open", 5.0)
