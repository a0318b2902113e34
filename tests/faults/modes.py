"""The ways that the plugin is executed, and how each of them is traced."""

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

HANG = 40.0  # seconds; longer than any lock is waited for
# The main thread, those that wait for connections and those that run something while the kernel works. Idle
# ones end after some time, so their number varies; one that is lost at each request shows soon.
_MOST_THREADS = 12
_EXECS = 2  # nsenter and sriov
CLIENT_WAIT = "15"  # seconds that the client in C waits for the server (SRIOV_FAST_WAIT)
# What requests import late.
PRELOAD = (
    "sriov_fast.plugin.process",
    *("sriov_fast.plugin.run", "sriov_fast.plugin.add", "sriov_fast.plugin.check", "sriov_fast.plugin.gc"),
    *("sriov_fast.ipam.exec", "sriov_fast.ipam.host_local.plugin"),
    *("sriov_fast.ipam.static", "sriov_fast.vf.announce", "sriov_fast.common.helpers", "traceback"),
    *("encodings.idna", "encodings.unicode_escape"),
)


# An IPAM plugin as a shell script: a file for each address, which holds its owner.
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
    """A node with one way to execute the plugin; ``ipam`` and ``attach`` are of its configuration."""

    name = ""
    attach = "move"
    ipam: Mapping[str, Any] = {}

    def __init__(self, root: Path) -> None:
        self.node = self.make(root)

    def make(self, root: Path) -> Node:
        """Return the node."""
        raise NotImplementedError

    def close(self) -> None:
        """Take everything away, whatever state it is in."""
        self.node.close()

    def run(self, verb: str, conf: dict[str, Any], pod: str, fault: Fault | None) -> Run:
        """Execute a verb with a fault; None records."""
        raise NotImplementedError

    def at_rest(self) -> list[str]:
        """Return what is not as it is between requests; waits for what is on its way."""
        self.node.settle()
        return []

    def restart(self) -> None:
        """Bring back what the fault has killed."""


def _child(
    node: Node, verb: str, conf: dict[str, Any], pod: str, *, traced: bool, command: list[str] | None = None
) -> subprocess.Popen[bytes]:
    """Start the plugin; a traced one stands in its first exec."""
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
    """Follow a process with all its children to their ends."""
    tracer.follow_child(process.pid)
    ended = tracer.pump(lambda: not tracer.tasks, HANG)
    if not ended:
        process.kill()
        tracer.pump(lambda: process.pid in tracer.ended, HANG)
    return Run(_outcome(process, tracer.ended[process.pid]), tracer, not ended)


def _outcome(process: subprocess.Popen[bytes] | Forked, status: int) -> Outcome:
    """Read what a process said whose end the tracer was told of."""
    process.returncode = status
    out, err = process.communicate(timeout=10)
    return Outcome(status, out, err)


def _kill(process: subprocess.Popen[Any]) -> None:
    """End a process. Each of its threads that is traced is a zombie until this process waits for it."""
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
    """A plugin that is a fork of this process, which has imported all that it needs; used as a Popen is."""

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
        """Kill it."""
        os.kill(self.pid, signal.SIGKILL)

    def communicate(self, timeout: float = 0) -> tuple[bytes, bytes]:
        """Read all that it said, and wait for its end."""
        said = [_read_all(ends[0]) for ends in self._ends[1:]]
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return said[0], said[1]


def _read_all(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


class ForkedNode(Node):
    """A node whose plugin is forked."""

    def start(self, command: str, conf: Any, pod: str = "", **_: Any) -> Any:
        """Fork a plugin."""
        environment = self.environment(command, pod, "eth0", "", "")
        return Forked(self, environment, json.dumps(conf).encode(), traced=False)


class InProcess(Mode):
    """The plugin without a server, in processes that have imported everything (see ``Started``)."""

    name = "process"
    backend = "cython"

    def make(self, root: Path) -> Node:
        """Return a node, and import what its plugins will need."""
        os.environ["SRIOV_FAST_BACKEND"] = self.backend
        if getattr(sys.modules.get("sriov_fast.kernel.backend"), "name", self.backend) != self.backend:
            for name in [name for name in sys.modules if name.partition(".")[0] == "sriov_fast"]:
                del sys.modules[name]  # of a parent that has loaded the compiled backend
        for name in PRELOAD:
            importlib.import_module(name)
        assert sys.modules["sriov_fast.kernel.backend"].name == self.backend
        return ForkedNode(root, vfs=3, backend=self.backend)

    def run(self, verb: str, conf: dict[str, Any], pod: str, fault: Fault | None) -> Run:
        """Trace a fork, with its children, from its first call to the end of the last of them."""
        environment = self.node.environment(verb, pod, "eth0", "", "")
        process = Forked(self.node, environment, json.dumps(conf).encode(), traced=True)
        return _traced(Tracer(fault), process)


class Plain(InProcess):
    """The same with the plain backend."""

    name = "plain"
    backend = "python"


class Started(Mode):
    """The installed executable where there is no server: the client in C, the interpreter and its imports."""

    name = "started"

    def make(self, root: Path) -> Node:
        """Return a node without a server."""
        return Node(root, vfs=3)

    def run(self, verb: str, conf: dict[str, Any], pod: str, fault: Fault | None) -> Run:
        """Trace the process, with its children, from the execution of ``sriov`` on."""
        process = _child(self.node, verb, conf, pod, traced=True)
        return _traced(Tracer(fault, execs=_EXECS), process)


class OneProcess(ResidentNode):
    """A server without a worker, whose calls would not be traced."""

    options_of_server = ("--processes", "1")


class Client(Mode):
    """The client in C with a server that has no fault."""

    name = "client"
    kind: type[ResidentNode] = OneProcess

    def make(self, root: Path) -> ResidentNode:
        """Return a node with a server, which has served a request."""
        node = self.kind(root, vfs=3)
        node.may_fall_back = True
        node.server.ready()
        return node

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._files: list[str] = []

    @property
    def resident(self) -> ResidentNode:
        """The node."""
        assert isinstance(self.node, ResidentNode)
        return self.node

    def close(self) -> None:
        """Kill the server, which may hang, and take the node away."""
        for server in self.resident.servers:
            _kill(server.process)
        Node.close(self.node)

    def run(self, verb: str, conf: dict[str, Any], pod: str, fault: Fault | None) -> Run:
        """Trace the client with its children."""
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
        """Start another server where there is none any more."""
        if self.resident.server.process.poll() is not None:
            self.resident.server.ended()
            self.resident.serve().ready()
            self._files = []

    def renew(self) -> None:
        """Kill the server and start another one."""
        _kill(self.resident.server.process)
        self.restart()

    def files(self) -> list[str]:
        """What the server has open, without the numbers of its sockets."""
        return sorted(name.partition(":")[0] for name in self.resident.server.files())

    def has_rested(self) -> bool:
        """Say whether the server has no more open than between requests."""
        return self.files() == (self._files or self.files())

    def at_rest(self) -> list[str]:
        """Compare descriptors and threads with those of the first time."""
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
        """Return what the server has or says that one at rest does not."""
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
    """The server's own calls, all threads together."""

    name = "resident"

    def run(self, verb: str, conf: dict[str, Any], pod: str, fault: Fault | None) -> Run:
        """Trace the server from before the request until it is at rest after it."""
        server = self.resident.server
        tracer = Tracer(fault)
        command = self.node.command()  # it polls the server: not while that has a tracer
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
    """The server's own calls, where a DEL answers before the VF is back in the host namespace."""

    name = "deferred"
    kind = DeferredNode  # one process, too


class Macvlan(Resident):
    """The server's own calls, where the VF stays in the host."""

    name = "macvlan"
    attach = "macvlan"


class Delegating(Resident):
    """The server's own calls, where it executes the IPAM plugin."""

    name = "delegate"
    ipam: Mapping[str, Any] = {"delegate": True}

    def make(self, root: Path) -> ResidentNode:
        """Return a node with an IPAM plugin of its own."""
        node = super().make(root)
        node.delegate("host-local", STORE)
        return node


MODES: dict[str, type[Mode]] = {
    kind.name: kind for kind in (Resident, Deferred, Macvlan, InProcess, Plain, Client, Delegating, Started)
}
