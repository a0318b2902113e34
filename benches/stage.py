"""The programs to compare, ready to be executed, and the servers that some of them use."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import ground
from harness import pod as netns
from harness.server import Server as _Server
from sriov_fast import client
from sriov_fast.cli import install

HERE = Path(__file__).resolve().parent
IN_LAB = os.environ.get("SRIOV_FAST_LAB") == "1"
# resident: the client and its server. compiled, plain: the executable without a server, on either backend.
# deferred: resident; a DEL replies before the VF is in the host. c: the C baseline, floor.c. elsewhere, here:
# the C baseline behind a server, served.c. peer: --peer. macvlan, c-macvlan: resident and the C baseline with
# the VF left in the host. counted: resident, with a separate server under valgrind (counts.py).
PROGRAMS = ("resident", "compiled", "plain", "deferred", "macvlan", "c", "c-macvlan", "peer")
# host-local is the built-in one; executed is the plugin of that name as a process
IPAMS = ("none", "host-local") if IN_LAB else ("none", "host-local", "executed")
OWN_JOURNAL = ("deferred", "counted")  # each with its own run directory; the others share one
DELAY = 0.012  # seconds: three ticks of a kernel with HZ=250
REST = 0.015  # seconds; late work of one process, such as an announcement, must not count for the next


class Case(NamedTuple):
    """A case to measure: ``program`` of PROGRAMS, or "bare", an interpreter that ends at once."""

    program: str
    ipam: str
    verb: str


class Job(NamedTuple):
    """A process to execute; ``stdin`` is the path of a file."""

    argv: list[str]
    environ: dict[str, str]
    stdin: str


class Sample(NamedTuple):
    """Seconds of one execution, from start to end and of processor time."""

    seconds: float
    cpu: float
    server_cpu: float = 0.0
    begin: int = 0  # nanoseconds of CLOCK_MONOTONIC


class Server(_Server):
    """A ``sriov-fast serve`` with the run directory of its environment."""

    def __init__(self, command: list[str], environ: dict[str, str], log: Path) -> None:
        super().__init__(command, environ, log)
        self.run = Path(environ["SRIOV_FAST_RUN"])
        self.ready()

    def records(self) -> list[str]:
        """Return the names of the attachments in the server's journal."""
        path = self.run / "vfs"
        return [name for name in os.listdir(path) if name[0] != "."] if path.exists() else []


class Stage:
    """A host with VFs, pods, the programs, and the started servers."""

    def __init__(self, root: Path, host: ground.Ground, peer: str = "") -> None:
        self.root = root
        self.ground = host
        self.peer = peer
        self.servers: dict[str, Server] = {}
        self.rest = REST
        self._floor: subprocess.Popen[bytes] | None = None
        self.bin = root / "bin"
        self.bin.mkdir(exist_ok=True)
        self._sources()
        self._executables()

    def _sources(self) -> None:
        for name in ("floor", "served", "nothing", "burst"):
            build(HERE / f"{name}.c", self.bin / name)

    def _executables(self) -> None:
        """Write the installed executables, a client that needs its server, and a bare interpreter."""
        binary = client.binary()
        assert binary, "the client is not compiled: make build"
        program = install.PROGRAMS["sriov"]
        write = install.write_executable
        write(self.bin / "sriov", install.executable(program))
        write(self.bin / "client", binary.read_bytes() + install.trailer(program, "/bin/false", []))
        write(self.bin / "sriov-fast", install.executable(install.PROGRAMS["sriov-fast"]))
        head = install.script(program, sys.executable, []).partition("import sys\n")[0]
        write(self.bin / "bare", f"{head}import os\nos._exit(0)\n")
        install.compile_package()

    def serve(self, name: str, *options: str) -> Server:
        """Start the server of program ``name``, with its own journal."""
        environ = self.environ(name)
        command = [str(self.bin / "sriov-fast"), "serve", *options]
        self.servers[name] = Server(command, environ, self.root / f"{name}.log")
        return self.servers[name]

    def serve_floor(self) -> None:
        """Start the C program as a server."""
        path = self.root / "floor.sock"
        self._floor = subprocess.Popen([str(self.bin / "served"), str(path)])
        while not path.exists():
            assert self._floor.poll() is None
            time.sleep(0.01)

    def close(self) -> None:
        if self._floor:
            self._floor.kill()
            self._floor.wait()
        for server in self.servers.values():
            server.stop()

    # --- jobs

    def job(self, case: Case, pod: int = 0, vf: int | None = 0) -> Job:
        """Return the process of a case; for ``vf`` None the plugin chooses, others use the pod's number."""
        name = self.ground.pods[pod]
        device = pod if vf is None else vf
        argv = self._argv(case, name, self.ground.netdev(device))
        return Job(argv, self.environ(case.program, case.verb, name), str(self._conf(case, vf, device)))

    def _argv(self, case: Case, pod: str, netdev: str) -> list[str]:
        if case.program == "c" and case.verb == "VERSION":
            return [str(self.bin / "nothing")]
        if case.program in ("c", "c-macvlan", "elsewhere", "here"):
            address = {"host-local": [ground.ADDRESS], "executed": [f"{ground.DELEGATES}/host-local"]}
            verb = case.verb.lower() + case.program[1:] if case.program == "c-macvlan" else case.verb.lower()
            words = [verb, f"/run/netns/{pod}", netdev, "eth0", *address.get(case.ipam, [])]
            if case.program in ("c", "c-macvlan"):
                return [str(self.bin / "floor"), *words]
            return [str(self.bin / "served"), str(self.root / "floor.sock"), case.program, *words]
        resident = ("resident", "macvlan", *OWN_JOURNAL)
        names = dict.fromkeys(resident, "client") | {"peer": self.peer, "bare": "bare"}
        return [str(self.bin / names.get(case.program, "sriov"))]

    def environ(self, program: str, verb: str = "", pod: str = "") -> dict[str, str]:
        """Return a plugin's environment; without a verb, the same without CNI variables, for a server."""
        given = self.ground.environment(verb, pod)
        given["SRIOV_FAST_BACKEND"] = "python" if program == "plain" else "cython"
        given["SRIOV_FAST_RUN"] = str(self.root / (program if program in OWN_JOURNAL else "run"))
        given["SRIOV_FAST_STATE"] = str(self.root / "state")
        given["SRIOV_FAST_NETWORKS"] = str(self.root / "ipam")
        given["SRIOV_FAST_SOCKET"] = "none" if program in ("compiled", "plain") else ""
        return given if verb else {key: value for key, value in given.items() if key[:4] != "CNI_"}

    def _conf(self, case: Case, vf: int | None, device: int) -> Path:
        """Return the file with the configuration; some programs have a network with its own leases."""
        own = case.program if case.program in (*OWN_JOURNAL, "macvlan", "peer") else "ours"
        path = self.root / f"{own}-{case.ipam}-{vf}-{device if own == 'peer' else 0}.json"
        if not path.exists():
            path.write_text(json.dumps(self.document(case.ipam, own, vf, device)))
        return path

    def document(
        self, ipam: str, own: str = "ours", vf: int | None = None, device: int = 0
    ) -> dict[str, Any]:
        """Return the network configuration; ``own`` names the network and the directory of its leases."""
        found: dict[str, Any] = {"cniVersion": "1.0.0", "name": own, "type": "sriov"}
        if own == "peer":  # names the device by each key that a plugin may read
            found["type"] = os.path.basename(self.peer)
            found |= {"device": self.ground.netdev(device), "deviceID": self.ground.pci(device)}
        else:
            found |= {"master": self.ground.masters()} | ({} if vf is None else {"vf": vf})
        if own == "macvlan":
            found["attach"] = "macvlan"
        if ipam != "none":
            found["ipam"] = {"type": "host-local", "subnet": ground.SUBNET, "routes": [{"dst": "0.0.0.0/0"}]}
        if ipam == "executed":
            found["ipam"]["dataDir"] = str(self.root / "ipam")
        if ipam == "executed" and own != "peer":
            found["ipam"]["delegate"] = True
        return found

    # --- execution

    def execute(self, case: Case, job: Job | None = None) -> tuple[Sample, bytes]:
        """Execute a process until its output and the process have ended; return times and output."""
        job = job or self.job(case)
        stdin = os.open(job.stdin, os.O_RDONLY | os.O_CLOEXEC)
        errors = self.root / "stderr"
        stderr = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        out, its_out = os.pipe()
        actions = [(os.POSIX_SPAWN_DUP2, fd, to) for to, fd in enumerate((stdin, its_out, stderr))]
        begin = time.monotonic_ns()
        pid = os.posix_spawn(job.argv[0], job.argv, job.environ, file_actions=actions)
        os.close(its_out)
        answer = b"".join(iter(lambda: os.read(out, 65536), b""))
        _, status, used = os.wait4(pid, 0)
        spent = (time.monotonic_ns() - begin) / 1e9
        for fd in (stdin, stderr, out):
            os.close(fd)
        assert status == 0, f"{case}: {answer!r} {errors.read_text()}"
        return Sample(spent, used.ru_utime + used.ru_stime, begin=begin), answer

    def attach(self, verb: str, mode: str, pod: int) -> bytes:
        """Execute a verb for a pod on the VF with the pod's number; both modes share the leases."""
        case = Case("resident", "host-local", verb)
        path = self.root / f"{mode}-{pod}.json"
        if not path.exists():
            path.write_text(json.dumps(self.document(case.ipam, vf=pod) | {"attach": mode}))
        return self.execute(case, self.job(case, pod)._replace(stdin=str(path)))[1]

    def measure(self, case: Case) -> Sample:
        """Execute and rest; add the processor time that the server used until then."""
        server = self.servers.get("resident" if case.program == "macvlan" else case.program)
        before = server.cpu() if server else 0.0
        sample = self.execute(case)[0]
        if (case.program, case.verb) == ("deferred", "DEL"):
            self.await_home()
        pause(self.rest)
        return sample._replace(server_cpu=server.cpu() - before) if server else sample

    def await_home(self) -> None:
        """Wait until the deferred work of a DEL has ended."""
        deadline = time.monotonic() + 30
        while self.servers["deferred"].records():
            assert time.monotonic() < deadline, "the VF does not come home"
            time.sleep(0.001)


def amount(name: str, usual: int, in_lab: int) -> int:
    """Return the amount to measure: from the environment, or a default, which is smaller in the lab."""
    return int(os.environ.get(f"SRIOV_FAST_BENCH_{name}") or (in_lab if IN_LAB else usual))


def pause(rest: float = REST) -> None:
    """Wait for a random time, or each process would start at the RCU phase in which the last one ended."""
    time.sleep(rest + random.uniform(0, DELAY))


def build(source: Path, output: Path) -> None:
    """Compile a C program, statically if possible: a static program starts faster."""
    flags = ["-O2", "-pthread", "-o", str(output), str(source)]
    machine = os.uname().machine
    # musl-gcc does not search the directories of the kernel headers
    headers = ["-idirafter", "/usr/include", "-idirafter", f"/usr/include/{machine}-linux-gnu"]
    faults = []
    for compiler in (["musl-gcc", "-static", *headers], ["cc", "-static"], ["cc"]):
        if not shutil.which(compiler[0]):
            continue
        done = subprocess.run([*compiler, *flags], check=False, capture_output=True, text=True)
        if done.returncode == 0:
            return
        faults.append(done.stderr)
    assert not faults, "".join(faults)
    pytest.skip("no C compiler")


@contextmanager
def standing(vfs: int, pods: int, peer: str = "") -> Iterator[Stage]:
    """Set up a stage and enter the host's namespace; remove everything at the end."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with tempfile.TemporaryDirectory(dir=ground.MEMORY, prefix="sriov-fast-bench-") as name:
        host = ground.make(Path(name), vfs, pods)
        try:
            with netns.inside(host.namespace):
                stage = Stage(Path(name), host, peer)
                try:
                    yield stage
                finally:
                    stage.close()
        finally:
            host.close()
