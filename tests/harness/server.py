"""Processes of resident servers, and strace to inject faults into them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest

from harness.waiting import PATIENCE, wait_for


class Server:
    """A process of ``sriov-fast serve``; ``notices`` are its messages to systemd (sd_notify(3))."""

    patience = PATIENCE  # seconds to wait for its start and for its end

    def __init__(
        self, words: Sequence[str], env: Mapping[str, str], log: Path, files: Sequence[int] = ()
    ) -> None:
        self.log = log
        self.notices: list[str] = []
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        path = str(log.with_name(f"notify-{uuid.uuid4().hex[:8]}"))
        self._notify.bind(path)
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                words,
                env={"PATH": os.environ["PATH"], "NOTIFY_SOCKET": path, **env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=files,
            )
        self.pid = self.process.pid

    def said(self) -> str:
        """Return the server's log."""
        return self.log.read_text()

    def _listen(self, wait: float) -> None:
        self._notify.settimeout(wait)
        try:
            self.notices.append(self._notify.recv(256).decode())
        except (TimeoutError, BlockingIOError):
            pass

    def ready(self) -> Self:
        """Wait until the server has reported that it is ready."""
        begin = time.monotonic()
        while "READY=1" not in self.notices:
            if time.monotonic() - begin > self.patience:
                self.kill()
                raise AssertionError(f"not ready within {self.patience:g} s: {self.said()}")
            assert self.process.poll() is None, self.said()
            self._listen(0.05)
        return self

    def stop(self) -> None:
        """Stop the server as systemd does; do nothing if it has ended."""
        if self.process.returncode is None:
            self.ready()
            self.process.terminate()
            assert self.ended() == 0, self.said()

    def ended(self) -> int:
        """Wait for the end of the server; return its exit status."""
        status = self.process.wait(self.patience)
        self._listen(0)
        self._listen(0)
        self._notify.close()
        return status

    def kill(self) -> None:
        """Kill the server."""
        self.process.kill()
        assert self.ended() == -signal.SIGKILL

    def files(self) -> list[str]:
        """Return the targets of the server's descriptors (/proc/PID/fd)."""
        directory, found = f"/proc/{self.pid}/fd", []
        for fd in os.listdir(directory):
            with suppress(FileNotFoundError):
                found.append(os.readlink(f"{directory}/{fd}"))
        return sorted(found)

    def is_idle(self) -> bool:
        """Return whether the server is ready and has no connection and no pipe."""
        self.ready()
        kinds = Counter(name.partition(":")[0] for name in self.files())
        # one socket for listening, and one for each worker
        return (kinds["socket"], kinds["pipe"]) == (1 + len(self.workers()), 0)

    def workers(self) -> list[int]:
        """Return the process IDs of the workers: children that execute the same program."""
        try:
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            return []
        own = command_of(str(self.pid))
        return [int(pid) for pid in children if command_of(pid) == own]

    def rests(self) -> bool:
        """Return whether it becomes idle soon."""
        deadline = time.monotonic() + 5.0
        while not self.is_idle():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def idle(self) -> list[str]:
        """Wait until the server is idle; return the targets of its descriptors."""
        wait_for(self.is_idle, "it does not come to rest")
        return self.files()

    def threads(self) -> int:
        """Return the number of the server's threads."""
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def memory_kib(self) -> int:
        """Return the memory of all processes, with shared pages counted once (proc_pid_smaps(5), Pss)."""
        texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in (self.pid, *self.workers())]
        return sum(int(text.partition("\nPss:")[2].split()[0]) for text in texts)

    def cpu(self) -> float:
        """Return the CPU seconds of all processes."""
        return sum(map(cpu_of, (self.pid, *self.workers())))


def cpu_of(pid: int) -> float:
    """Return the CPU seconds of all threads of a process, ended ones included (CPUCLOCK_SCHED)."""
    return time.clock_gettime((~pid << 3) | 2)


def command_of(pid: str) -> bytes:
    """Return the command line of a process, b"" if the process has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


class Strace:
    """A strace, attached to all threads of a process; the counts of ``inject`` start at the attachment."""

    def __init__(self, pid: int, output: Path, *words: str) -> None:
        self.output = output
        command = ["strace", "-f", "-o", str(output), *words, "-p", str(pid)]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE)
        assert self._process.stderr
        line = self._process.stderr.readline()
        assert b"attached" in line, line

    def __enter__(self) -> Self:
        return self

    def end_with(self, server: Server) -> None:
        """Kill a server that strace delays; the server ends only after its tracer has ended."""
        server.process.kill()
        self._process.kill()
        assert server.ended() == -signal.SIGKILL

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate(timeout=PATIENCE)

    def calls(self) -> dict[int, list[str]]:
        """Return the calls of each thread in order, as lines of strace; complete after its end."""
        found: dict[int, list[str]] = {}
        for line in self.output.read_text().splitlines():
            thread, call = line.split(maxsplit=1)
            if call[:1].isalpha():
                found.setdefault(int(thread), []).append(call)
        return found


def injecting(calls: str, effect: str, path: object = "") -> tuple[str, ...]:
    """Return the options of strace that inject an effect (``error=EIO:when=2``) into system calls."""
    only = ("-P", str(path)) if path else ()
    return (*only, "-e", f"trace={calls}", "-e", f"inject={calls}:{effect}")


def interfered(calls: str, effect: str, path: object = "") -> tuple[str, ...]:
    """Return the command prefix that runs a program with the effects of ``injecting``."""
    return ("strace", "-f", "-o", "/dev/null", *injecting(calls, effect, path))


has_strace = shutil.which("strace") is not None
needs_strace = pytest.mark.skipif(not has_strace, reason="needs strace")
