"""The modes of executing and tracing the plugin."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from faults import ptrace
from faults.tracer import KILL, Fault, Seen, Tracer
from harness import pod as netns
from harness.runtime import Outcome
from harness.veth import DeferredNode, Node, ResidentNode
from harness.waiting import wait_for

HANG = 40.0  # seconds; longer than the longest wait for a lock
# The main thread, the threads that accept connections and the helper threads. Idle threads end after some
# time, so the number varies. If each request leaks a thread, the number soon exceeds this limit.
_MOST_THREADS = 12
_EXECS = 2  # nsenter and sriov
CLIENT_WAIT = "15"  # seconds that the client in C waits for the server (SRIOV_FAST_WAIT)
# Modules that the plugin imports during a request.
PRELOAD = (
    "sriov_fast.plugin.process",
    *("sriov_fast.plugin.run", "sriov_fast.plugin.add", "sriov_fast.plugin.check", "sriov_fast.plugin.gc"),
    *("sriov_fast.ipam.exec", "sriov_fast.ipam.host_local.plugin"),
    *("sriov_fast.ipam.static", "sriov_fast.vf.announce", "sriov_fast.common.helpers", "traceback"),
    *("encodings.idna", "encodings.unicode_escape"),
)


# An IPAM plugin as a shell script: each address is a file that contains the container's ID.
STORE = """\
mkdir -p "$ROOT/ipam/net1" && cd "$ROOT/ipam/net1" || exit 1
case $CNI_COMMAND in
ADD)
    n=2
    set -C
    until echo "$CNI_CONTAINERID" 2>/dev/null > 10.77.0.$n; do n=$((n + 1)); done
    echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.77.0.'$n'/24"}]}' ;;
DEL) grep -lx "$CNI_CONTAINERID" 10.* | xargs -r rm ;;
esac
"""


class Run:
    """One execution of a verb under the tracer."""

    def __init__(self, outcome: Outcome | None, tracer: Tracer, hung: bool) -> None:
        self.outcome = outcome
        self.seen: list[Seen] = tracer.seen
        self.fired = tracer.fired
        self.hung = hung


class Mode:
    """A node with one way to execute the plugin; ``ipam`` and ``attach`` are keys of the configuration."""

    name = ""
    attach = "move"
    ipam: Mapping[str, Any] = {}

    def __init__(self, root: Path) -> None:
        self.node = self.make(root)

    def make(self, root: Path) -> Node:
        """Return the node."""
        raise NotImplementedError

    def close(self) -> None:
        """Remove the node, also after a fault."""
        self.node.close()

    def run(self, verb: str, conf: dict[str, Any], pod: str, fault: Fault | None) -> Run:
        """Execute a verb with a fault; record the calls if ``fault`` is None."""
        raise NotImplementedError

    def at_rest(self) -> list[str]:
        """Wait until pending work has ended; return the differences from the idle state."""
        self.node.settle()
        return []

    def restart(self) -> None:
        """Start another server if the fault has killed it."""


def _child(
    node: Node, verb: str, conf: dict[str, Any], pod: str, *, traced: bool, command: list[str] | None = None
) -> subprocess.Popen[bytes]:
    """Start the plugin; a traced one stops in its first exec."""
    environment = node.environment(verb, pod, "eth0", "", "") | {"SRIOV_FAST_WAIT": CLIENT_WAIT}
    read, write = os.pipe()
    os.write(write, json.dumps(conf).encode())
    os.close(write)
    process = subprocess.Popen(
        command or node.command(),
        env=environment,
        stdin=read,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=(lambda: ptrace.request(ptrace.TRACEME, 0)) if traced else None,
    )
    os.close(read)
    return process


def _traced(tracer: Tracer, process: subprocess.Popen[bytes] | Forked) -> Run:
    """Trace a process and its children until all have ended."""
    tracer.follow_child(process.pid)
    ended = tracer.pump(lambda: not tracer.tasks, HANG)
    if not ended:
        process.kill()
        tracer.pump(lambda: process.pid in tracer.ended, HANG)
    return Run(_outcome(process, tracer.ended[process.pid]), tracer, not ended)


def _outcome(process: subprocess.Popen[bytes] | Forked, status: int) -> Outcome:
    """Read the output of a process that the tracer has reaped; return it with the status."""
    process.returncode = status
    out, err = process.communicate(timeout=10)
    return Outcome(status, out, err)


def _kill(process: subprocess.Popen[Any]) -> None:
    """Kill a process and reap it; each traced thread is a zombie until this process waits for it."""
    if process.poll() is not None:
        return
    process.kill()
    status = 0
    with suppress(ChildProcessError):
        ended = 0
        while ended != process.pid or not (os.WIFEXITED(status) or os.WIFSIGNALED(status)):
            ended, status = os.waitpid(-1, ptrace.WALL)
    process.returncode = os.waitstatus_to_exitcode(status)


class Forked:
    """The plugin in a fork of this process, which has imported its modules; has the interface of Popen."""

    def __init__(self, node: Node, environment: dict[str, str], stdin: bytes, *, traced: bool) -> None:
        self.args = "forked"
        self.returncode: int | None = None
        self._ends = os.pipe(), os.pipe(), os.pipe()
        with suppress(BrokenPipeError):
            os.write(self._ends[0][1], stdin)
        self.pid = os.fork()
        if not self.pid:
            self._be_the_plugin(node, environment, traced)
        for fd in (*self._ends[0], self._ends[1][1], self._ends[2][1]):
            os.close(fd)

    def _be_the_plugin(self, node: Node, environment: dict[str, str], traced: bool) -> None:
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.environ.clear()
            os.environ.update(environment)
            for fd, (reader, writer) in enumerate(self._ends):
                os.dup2(writer if fd else reader, fd)
            netns.enter(node.host)
            os.closerange(3, 1 << 10)
            if traced:
                ptrace.request(ptrace.TRACEME, 0)
                os.kill(os.getpid(), signal.SIGSTOP)
            sys.modules["sriov_fast.plugin.process"].main()
        finally:
            os._exit(70)

    def kill(self) -> None:
        """Send SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    def communicate(self, timeout: float = 0) -> tuple[bytes, bytes]:
        """Read stdout and stderr until the end of the process, and reap it."""
        said = [_read_all(ends[0]) for ends in self._ends[1:]]
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return said[0], said[1]


def _read_all(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


class ForkedNode(Node):
    """A node that executes the plugin in forks of this process."""

    def start(self, command: str, conf: Any, pod: str = "", **_: Any) -> Any:
        """Start the plugin in a fork."""
        environment = self.environment(command, pod, "eth0", "", "")
        return Forked(self, environment, json.dumps(conf).encode(), traced=False)


class InProcess(Mode):
    """The plugin without a server, in forks of a process that has imported its modules."""

    name = "process"
    backend = "cython"

    def make(self, root: Path) -> Node:
        """Import the plugin's modules with this mode's backend, and return a node."""
        os.environ["SRIOV_FAST_BACKEND"] = self.backend
        if getattr(sys.modules.get("sriov_fast.kernel.backend"), "name", self.backend) != self.backend:
            for name in [name for name in sys.modules if name.partition(".")[0] == "sriov_fast"]:
                del sys.modules[name]  # the parent process has loaded the other backend
        for name in PRELOAD:
            importlib.import_module(name)
        assert sys.modules["sriov_fast.kernel.backend"].name == self.backend
        return ForkedNode(root, vfs=3, backend=self.backend)

    def run(self, verb: str, conf: dict[str, Any], pod: str, fault: Fault | None) -> Run:
        """Trace a fork and its children from its first call until all have ended."""
        environment = self.node.environment(verb, pod, "eth0", "", "")
        process = Forked(self.node, environment, json.dumps(conf).encode(), traced=True)
        return _traced(Tracer(fault), process)


class Plain(InProcess):
    """The plugin without a server, in forks, with the plain backend."""

    name = "plain"
    backend = "python"


class Started(Mode):
    """The installed executable without a server: the client in C, the interpreter and its imports."""

    name = "started"

    def make(self, root: Path) -> Node:
        """Return a node without a server."""
        return Node(root, vfs=3)

    def run(self, verb: str, conf: dict[str, Any], pod: str, fault: Fault | None) -> Run:
        """Trace the process and its children from the execution of ``sriov`` on."""
        process = _child(self.node, verb, conf, pod, traced=True)
        return _traced(Tracer(fault, execs=_EXECS), process)


class OneProcess(ResidentNode):
    """A node with a server without workers: the tracer does not follow them."""

    options_of_server = ("--processes", "1")


class Client(Mode):
    """The client in C with a running server; faults are injected into the client only."""

    name = "client"
    kind: type[ResidentNode] = OneProcess

    def make(self, root: Path) -> ResidentNode:
        """Return a node with a server that is ready."""
        node = self.kind(root, vfs=3)
        node.may_fall_back = True
        node.server.ready()
        return node

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._files: list[str] = []

    @property
    def resident(self) -> ResidentNode:
        """The node with its server."""
        assert isinstance(self.node, ResidentNode)
        return self.node

    def close(self) -> None:
        """Kill the servers, which may hang, and remove the node."""
        for server in self.resident.servers:
            _kill(server.process)
        Node.close(self.node)

    def run(self, verb: str, conf: dict[str, Any], pod: str, fault: Fault | None) -> Run:
        """Trace the client and its children."""
        process = _child(self.node, verb, conf, pod, traced=True)
        tracer = Tracer(fault, execs=_EXECS)
        run = _traced(tracer, process)
        self._note_end_of_server(tracer)
        return run

    def _note_end_of_server(self, tracer: Tracer) -> None:
        server = self.resident.server
        if server.pid in tracer.ended:
            server.process.returncode = tracer.ended[server.pid]

    def restart(self) -> None:
        """Start another server if the last one has ended."""
        if self.resident.server.process.poll() is not None:
            self.resident.server.ended()
            self.resident.serve().ready()
            self._files = []

    def renew(self) -> None:
        """Kill the server and start another one."""
        _kill(self.resident.server.process)
        self.restart()

    def files(self) -> list[str]:
        """Return the files that the server has open, without the inode numbers of its sockets."""
        return sorted(name.partition(":")[0] for name in self.resident.server.files())

    def has_rested(self) -> bool:
        """Return whether the server has the same files open as when it was idle."""
        return self.files() == (self._files or self.files())

    def at_rest(self) -> list[str]:
        """Wait until the server is idle; return its differences from an idle server.

        The first call notes the open files. A server with differences is replaced.
        """
        with suppress(AssertionError):
            Node.settle(self.node)
            self.resident.homed()
        server = self.resident.server
        if not self._files:
            server.idle()
            self._files = self.files()
        with suppress(AssertionError):
            wait_for(lambda: self.has_rested() or server.process.poll() is not None, "it does not rest", 4)
        found = self._unlike_before()
        server.log.write_text("")
        if found:
            self.renew()
        return found

    def _unlike_before(self) -> list[str]:
        """Return the server's differences from an idle one: its end, descriptors, threads, a traceback."""
        server, said = self.resident.server, self.resident.server.said()
        last = said.strip().rpartition("\n")[2][-1000:]
        if server.process.poll() is not None:
            return [f"the server ended with {server.process.poll()}: {last}"]
        found = []
        if not self.has_rested():
            more, less = Counter(self.files()), Counter(self._files)
            found.append(f"server's descriptors: {[*(more - less)]}, missing {[*(less - more)]}")
        if server.threads() > _MOST_THREADS:
            found.append(f"server's threads: {server.threads()}, with one request at a time")
        if "Traceback" in said:
            found.append(f"server's traceback: {said[said.index('Traceback') :]}")
        return found


class Resident(Client):
    """The calls of all threads of the server."""

    name = "resident"

    def run(self, verb: str, conf: dict[str, Any], pod: str, fault: Fault | None) -> Run:
        """Trace the server from before the request until it is idle again."""
        server = self.resident.server
        tracer = Tracer(fault)
        command = self.node.command()  # command() polls the server, which must have no tracer yet
        tracer.attach(server.pid)
        process = _child(self.node, verb, conf, pod, traced=False, command=command)

        def is_over() -> bool:
            if process.pid not in tracer.ended:
                return False
            if server.pid in tracer.ended:
                return True
            killed = tracer.fired and fault is not None and fault.error == KILL
            return not killed and self.has_rested() and not self.resident.returning()

        ended = tracer.pump(lambda: process.pid in tracer.ended, HANG)
        if not ended:
            process.kill()
            tracer.pump(lambda: process.pid in tracer.ended, HANG)
        tracer.pump(is_over, 5)
        tracer.detach()
        self._note_end_of_server(tracer)
        return Run(_outcome(process, tracer.ended[process.pid]), tracer, not ended)


class Deferred(Resident):
    """The calls of a server that answers a DEL before the VF is back in the host namespace."""

    name = "deferred"
    kind = DeferredNode  # --defer-release implies one process


class Macvlan(Resident):
    """The calls of the server when the VF stays in the host namespace."""

    name = "macvlan"
    attach = "macvlan"


class Delegating(Resident):
    """The calls of a server that executes the IPAM plugin as another program."""

    name = "delegate"
    ipam: Mapping[str, Any] = {"delegate": True}

    def make(self, root: Path) -> ResidentNode:
        """Return a node with ``STORE`` as its IPAM plugin."""
        node = super().make(root)
        node.delegate("host-local", STORE)
        return node


MODES: dict[str, type[Mode]] = {
    kind.name: kind for kind in (Resident, Deferred, Macvlan, InProcess, Plain, Client, Delegating, Started)
}
