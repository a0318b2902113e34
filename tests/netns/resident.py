"""Nodes whose ``sriov`` is the client in C, with the server that it asks, and strace to interfere."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from node import Node, Outcome

from sriov_fast import client
from sriov_fast.cli import install

# What the client becomes where no server answers; it leaves a word of that.
IN_PROCESS = """\
#!/bin/sh
echo "$CNI_COMMAND${SRIOV_FAST_TOKEN:+ again}" >> ROOT/in-process
exec PYTHON "$@"
"""
PATIENCE = 30.0  # seconds, for what takes milliseconds on a machine with nothing else to do


def wait_for(what: Callable[[], object], why: str) -> None:
    """Wait until ``what`` is true."""
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, why
        time.sleep(0.005)


class Server:
    """A ``sriov-fast serve`` in the node's host namespace.

    ``enter`` are words in front of its command, ``env`` is added to its environment. ``notices`` are what it
    told systemd.
    """

    def __init__(
        self,
        node: ResidentNode,
        options: Sequence[str] = (),
        *,
        enter: Sequence[str] = (),
        env: dict[str, str] | None = None,
        files: Sequence[int] = (),
    ) -> None:
        self.notices: list[str] = []
        self.log = node.root / "server.log"
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        path = str(node.root / f"notify{len(node.servers)}")
        self._notify.bind(path)
        words = [*node.enter(), *enter, str(node.root / "sriov-fast"), "serve", *options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                words,
                env={"PATH": os.environ["PATH"], "NOTIFY_SOCKET": path} | node.roots() | (env or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=files,
            )
        self.pid = self.process.pid

    def said(self) -> str:
        return self.log.read_text()

    def _listen(self, wait: float) -> None:
        self._notify.settimeout(wait)
        try:
            self.notices.append(self._notify.recv(256).decode())
        except (TimeoutError, BlockingIOError):
            pass

    def ready(self) -> Self:
        """Wait until it serves."""
        deadline = time.monotonic() + PATIENCE
        while "READY=1" not in self.notices:
            assert time.monotonic() < deadline, self.said()
            assert self.process.poll() is None, self.said()
            self._listen(0.05)
        return self

    def stop(self) -> None:
        """Ask it to stop, and see that it does so in order; harmless when it was killed."""
        if self.process.returncode is None:
            self.ready()
            self.process.terminate()
            assert self.ended() == 0, self.said()

    def ended(self) -> int:
        """Wait for its end; return its exit status."""
        status = self.process.wait(PATIENCE)
        self._listen(0)
        self._listen(0)
        self._notify.close()
        return status

    def kill(self) -> None:
        self.process.kill()
        assert self.ended() == -signal.SIGKILL

    def files(self) -> list[str]:
        """What it has open."""
        directory, found = f"/proc/{self.pid}/fd", []
        for fd in os.listdir(directory):
            with suppress(FileNotFoundError):
                found.append(os.readlink(f"{directory}/{fd}"))
        return sorted(found)

    def idle(self) -> list[str]:
        """Wait until it has no connection and no pipe; return what it has open then."""

        def waiting() -> bool:
            kinds = Counter(name.partition(":")[0] for name in self.files())
            return (kinds["socket"], kinds["pipe"]) == (1, 0)  # the one that it listens on

        wait_for(waiting, "it does not come to rest")
        return self.files()

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def resident_kib(self) -> int:
        """Its VmRSS (proc_pid_status(5))."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(text.partition("VmRSS:")[2].split()[0])


class Strace:
    """strace, attached to a process and all its threads; counts of ``inject`` begin here."""

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
        """Kill the server that it holds up, and which takes not even that signal while it has a tracer."""
        server.process.kill()
        self._process.kill()
        assert server.ended() == -signal.SIGKILL

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate(timeout=PATIENCE)

    def calls(self) -> dict[int, list[str]]:
        """What each thread called, in order, whole lines; to be read when the tracing is over."""
        found: dict[int, list[str]] = {}
        for line in self.output.read_text().splitlines():
            thread, call = line.split(maxsplit=1)
            if call[:1].isalpha():
                found.setdefault(int(thread), []).append(call)
        return found


class ResidentNode(Node):
    """A node with the client and a server; ``options`` are the server's.

    ``servers`` are all that there were, ``server`` is the last.
    """

    socket = ""  # where SRIOV_FAST_RUN says
    options_of_server: tuple[str, ...] = ()
    may_fall_back = False

    def __init__(self, root: Path, vfs: int = 4, backend: str = "cython") -> None:
        super().__init__(root, vfs, backend)
        self.servers: list[Server] = []
        self._install()
        self.serve()

    def _install(self) -> None:
        """Write what ``sriov-fast install`` writes, and have it told where that falls back."""
        program = install.executable(install.PROGRAMS["sriov-fast"])
        binary = client.binary()
        assert binary, "the client in C is not built: run `make build`"
        shell = IN_PROCESS.replace("ROOT", str(self.root)).replace("PYTHON", sys.executable)
        trailer = install.trailer(
            install.PROGRAMS["sriov"], str(self.root / "interpreter"), install.search_path()
        )
        files = {
            "sriov-fast": program,
            "interpreter": shell.encode(),
            "sriov": binary.read_bytes() + trailer,
        }
        for name, content in files.items():
            (self.root / name).write_bytes(content)
            (self.root / name).chmod(0o755)

    @property
    def server(self) -> Server:
        return self.servers[-1]

    def serve(self, *options: str, **more: Any) -> Server:
        """Start another server, with the node's options if none are given; see that it is ``ready``."""
        self.servers.append(Server(self, options or self.options_of_server, **more))
        return self.server

    def again(self, *options: str) -> Server:
        """Replace the server by another one; return that when it serves."""
        self.server.stop()
        return self.serve(*options).ready()

    def enter(self) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.host}", "--"]

    def roots(self) -> dict[str, str]:
        return {
            key: value
            for key, value in self.environment("", "", "", "", "").items()
            if key.startswith("SRIOV_FAST")
        }

    def command(self) -> list[str]:
        assert (self.options, self.prelude) == ((), "pass"), "there is no interpreter to tell"
        if self.server.process.poll() is None:
            self.server.ready()
        return [*self.enter(), str(self.root / "sriov")]

    def in_process(self) -> list[str]:
        """The verbs that no server served; "again" stands behind one that a server had got."""
        path = self.root / "in-process"
        return path.read_text().splitlines() if path.exists() else []

    def delete(self, conf: dict[str, Any], pod: str, **more: Any) -> Outcome:
        done = super().delete(conf, pod, **more)
        self.homed()
        return done

    def returning(self) -> list[str]:
        """The records of VFs that are their containers' no more and still on their way."""
        return [name for name in self.records() if "~~" in name and "~~~" not in name]

    def homed(self) -> None:
        """Wait until no VF is on its way home any more, and none is held that is nobody's."""
        wait_for(lambda: not self.returning() and not self._held_free(), "a VF does not come home")

    def _held_free(self) -> set[str]:
        return {name[3:] for name in self.held("vf-")} - {name.partition("~")[0] for name in self.records()}

    def held(self, prefix: str = "") -> list[str]:
        """The locks that somebody has (/proc/locks); a file alone may be a dead one's."""
        inodes = {line.split()[5].rpartition(":")[2] for line in Path("/proc/locks").read_text().splitlines()}
        return [name for name in self.locks() if name.startswith(prefix) and self._inode(name) in inodes]

    def _inode(self, lock: str) -> str:
        try:
            return str((self.run_dir / "locks" / lock).stat().st_ino)
        except FileNotFoundError:
            return ""

    def settle(self) -> None:
        super().settle()
        self.homed()
        wait_for(lambda: not any(map(self.announcing, self.pods)), "an announcement does not end")

    def _has_processes(self) -> bool:
        return bool(set(self._processes()) - {server.pid for server in self.servers})

    def touched(self) -> list[str]:
        return [name for name in super().touched() if name not in ("server.lock", "sriov.sock")]

    def close(self) -> None:
        """Stop the server and look whether all went well; the server had no fault of its own."""
        try:
            for server in self.servers:
                server.stop()
            assert "Traceback" not in self.server.said(), self.server.said()
            assert self.may_fall_back or not self.in_process(), self.in_process()
        finally:
            for server in self.servers:
                if server.process.poll() is None:
                    server.process.kill()
                    server.process.wait()
            super().close()


class DeferredNode(ResidentNode):
    """Its server answers a DEL before the VF is home."""

    options_of_server = ("--defer-release",)


def held_up(node: Node, kind: str = "host-local", give: str = '{"ips":[{"address":"10.1.0.2/24"}]}') -> None:
    """Install a delegate whose ADD waits until ``let_go``, and then answers with ``give``."""
    say = 'echo $$ > "$ROOT/waits-$CNI_CONTAINERID"'
    wait = 'while [ -d "$ROOT" ] && [ ! -e "$ROOT/go" ]; do sleep 0.02; done'
    node.delegate(kind, f"[ \"$CNI_COMMAND\" = ADD ] || exit 0\n{say}\n{wait}\necho '{give}'")


def waits(node: Node, container: str) -> int:
    """Wait until the delegate of a container's ADD does; return its process."""
    path = node.root / f"waits-{container}"
    wait_for(lambda: path.exists() and path.read_text().strip(), "the delegate was not started")
    return int(path.read_text())


def let_go(node: Node) -> None:
    (node.root / "go").touch()


KINDS: dict[str, type[Node]] = {
    "process": Node,
    "resident": ResidentNode,
    "deferred": DeferredNode,
}
has_strace = shutil.which("strace") is not None
