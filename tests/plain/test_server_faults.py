"""A fault in one part of the resident server does not stop the server."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.waiting import wait_for

HEADER = struct.Struct("=IIII16s")
MAGIC = int.from_bytes(b"SRF1", "little")
ENVIRON = b"CNI_COMMAND=VERSION\0"
VERSION = HEADER.pack(MAGIC, 0, len(ENVIRON), 2, bytes(16)) + ENVIRON + b"{}"

# A server with continuous upkeep. FAULT is code that injects a fault when the server is ready, BEFORE is code
# that runs earlier.
PROGRAM = """
import _thread, os, socket, sys
from time import sleep as hang
from sriov_fast.common import log
from sriov_fast.plugin import recovery, run
from sriov_fast.plugin.context import Reply
from sriov_fast.server import connections, protocol, threads
from sriov_fast.common.paths import Roots

root = sys.argv[1]
listener = socket.socket(socket.AF_UNIX)
listener.bind(f"{root}/socket")
listener.listen(64)
threads._TICK = 0.02
real_thread = _thread.start_new_thread

def no_thread(*_):
    raise RuntimeError("can't start new thread")

def fault(*_, **__):
    open(f"{root}/faults", "a").write("x")
    raise KeyError("made up")

def break_it():
    FAULT
    open(f"{root}/ready", "w").close()

BEFORE
made = threads.Server([listener], Roots(run=root, state=root), threads.Options(upkeep_every=0.02))
made.start()
break_it()
made.wait()
made.finish()
"""


class Served:
    """A server process with an injected fault."""

    def __init__(self, root: Path, fault: str, before: str) -> None:
        self.root = root
        self.log = root / "log"
        with self.log.open("wb") as log:
            program = PROGRAM.replace("FAULT", fault or "pass").replace("BEFORE", before)
            self.process = subprocess.Popen([sys.executable, "-c", program, str(root)], stderr=log)
        self.wait_for(lambda: (root / "ready").exists())

    def wait_for(self, what: Callable[[], object]) -> None:
        wait_for(lambda: what() or self.process.poll() is not None, "the server does not come to that")
        assert self.process.poll() is None, self.log.read_text()

    def ask(self, content: bytes = VERSION) -> bytes:
        """Send a request; return the reply, up to the end of the connection."""
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(20)
            peer.connect(str(self.root / "socket"))
            peer.sendall(content)
            peer.shutdown(socket.SHUT_WR)
            found = b""
            while chunk := peer.recv(1 << 16):
                found += chunk
            return found

    def try_(self, content: bytes) -> None:
        """Send a request that the server may refuse before it is sent completely."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.ask(content)

    def faults(self) -> int:
        path = self.root / "faults"
        return path.stat().st_size if path.exists() else 0

    def files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def end(self) -> None:
        """Send SIGTERM, and check that the server exits with status 0."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(10) == 0, self.log.read_text()


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    made: list[Served] = []

    def serve(fault: str, before: str = "") -> Served:
        made.append(Served(tmp_path, fault, before))
        return made[-1]

    yield serve
    for served in made:
        served.process.kill()
        served.process.wait()


# The first thread cannot be started until the file "go" exists.
LATE = """
def late(*words):
    return (real_thread if os.path.exists(f"{root}/go") else no_thread)(*words)

_thread.start_new_thread = late
"""


def test_no_thread_at_the_start(serve: Serve, tmp_path: Path) -> None:
    """The server repeats the start of its first thread until it succeeds."""
    served = serve("", LATE)
    served.wait_for(lambda: "cannot start a thread" in served.log.read_text())
    (tmp_path / "go").touch()
    assert b"supportedVersions" in served.ask()
    served.end()


def test_a_thread_for_the_upkeep_that_cannot_be_started(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "pending").mkdir()
    served = serve("_thread.start_new_thread = no_thread")
    served.wait_for(lambda: "cannot start a thread" in served.log.read_text())
    assert b"supportedVersions" in served.ask()
    served.end()


def test_a_failing_upkeep(serve: Serve) -> None:
    served = serve("recovery.repair = fault")
    served.wait_for(lambda: served.faults() > 3)
    assert b"supportedVersions" in served.ask()
    assert "made up" in served.log.read_text()
    served.end()


def test_an_upkeep_that_hangs(serve: Serve) -> None:
    """Requests and SIGTERM do not wait for an upkeep that hangs."""
    waits = "lambda *_: os.close(os.open(f'{root}/hangs', os.O_CREAT)) or hang(60)"
    served = serve(f"threads._LAST = 0.2; recovery.repair = {waits}")
    served.wait_for(lambda: (served.root / "hangs").exists())
    assert b"supportedVersions" in served.ask()
    served.end()


PARTS = {
    "the log": "log.Logger.warning = log.Logger.error = fault",
    "peer_uid": "connections.peer_uid = fault",
    "read": "protocol.Incoming.read = fault",
    "run": "run.run = fault",
    "the reply": "protocol.answer = fault",
    "nobody there, and the log": "protocol.answer = lambda *_: os.write(-1, b''); log.Logger.warning = fault",
    "behind the reply": "os.sched_yield = fault",
    "let_go": "Reply.let_go = fault",
    "afterwards": "run.run = lambda *_: Reply(output=b'supportedVersions', afterwards=fault)",
    "SystemExit": "run.run = lambda *_: sys.exit(3)",
    "the trace": "threads._steps = fault",
}


@pytest.mark.parametrize("fault", PARTS.values(), ids=list(PARTS))
def test_a_fault_in_a_request(serve: Serve, fault: str) -> None:
    """A fault fails only its request: the server leaks no descriptor and exits on SIGTERM."""
    served = serve(fault)
    contents = [b"HTTP/1.1 and no request at all, but long enough", VERSION[:40], VERSION]
    for content in contents:
        served.try_(content)
    before = served.files()
    for content in contents * 5:
        served.try_(content)
    served.wait_for(lambda: served.files() <= before)
    served.end()
