"""A node without a card: a namespace plays the host, veth pairs its VFs, and a sysfs tree describes them.

The plugin is the real executable and the kernel's answers are real. The ``lab`` tier has a card,
for settings through the PF and interrupts.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from harness import devices
from harness import pod as netns
from harness.runtime import Outcome, Runtime
from harness.server import Server
from harness.sysfs_tree import Tree, build_tree
from harness.waiting import wait_for
from sriov_fast import client
from sriov_fast.cli import install
from sriov_fast.common import files

DELEGATES = "/usr/lib/cni"
# Replaces the interpreter that the client executes where no server answers; it writes down each execution.
IN_PROCESS = """\
#!/bin/sh
echo "$CNI_COMMAND${SRIOV_FAST_TOKEN:+ again}" >> ROOT/in-process
exec PYTHON "$@"
"""
LAUNCHER = (
    "import sys; sys.path[:0] = {path!r}; {prelude}; from sriov_fast.plugin.process import main; main()"
)

ADDRESS = {"ips": [{"address": "10.1.0.2/24"}]}  # that other IPAM plugins give

State = dict[str, dict[str, Any]]
# What the kernel changes with the state of a device, or with a move.
_VOLATILE = ("ifindex", "operstate", "link_index", "link", "link_netnsid", "qdisc", "flags")
_SETTABLE_FLAGS = {"UP", "MULTICAST", "PROMISC", "ALLMULTI", "NOARP"}


class Node(Runtime):
    """A namespace that plays the host, with ``vfs`` stand-ins, and the pods made on it.

    The plugin is the installed executable; with ``options`` for the interpreter, or a ``prelude`` to run
    before the plugin, that interpreter.
    """

    master = "pf0"
    executable = ""
    socket = "none"  # of the resident server
    _own: tuple[str, ...] = ("run", "etc")  # files of the node itself
    _running: tuple[str, ...] = ()  # files of a server that runs

    @classmethod
    def install(cls, directory: Path) -> None:
        """Write the executable, once for all nodes."""
        path = directory / "sriov"
        install.write_executable(path, install.executable(install.PROGRAMS["sriov"], "client"))
        cls.executable = str(path)

    def __init__(self, root: Path, vfs: int = 4, backend: str = "cython") -> None:
        super().__init__(root)
        self.host = f"node-{self.id}"
        self.backend = backend
        self.options: tuple[str, ...] = ()
        self.prelude = "pass"
        self.tree: Tree = build_tree(root / "tree", pf="pf0", vfs=vfs, numa=0)
        self.run_dir = root / "run"
        self.allow()
        self.search = f"{root}/bin:{DELEGATES}"
        self.ip("netns", "add", self.host)
        self._make_links()
        self._first = self._picture()
        self._remember()

    def _remember(self) -> None:
        """Note the attributes, to which ``renew`` returns."""
        self._settings = {name: value for name, value in vars(self).items() if name != "_settings"}

    def _make_links(self) -> None:
        lines = ["link set lo up", "link add pf0 type veth peer name pf0-peer"]
        for index in range(self.tree.vfs):
            lines.append(f"link add {self.tree.netdev(index)} type veth peer name peer{index}")
            lines.append(f"link set peer{index} up")
        self.nip("-batch", "-", stdin="\n".join(lines))

    def _make_links_anew(self) -> None:
        """Replace all devices; a pair ends with either of its devices, also with one in a dying namespace."""
        lines = [f"link del {name}" for name in self.links() - {"lo"}]
        words = ["ip", "-n", self.host, "-force", "-batch", "-"]
        subprocess.run(words, check=False, capture_output=True, text=True, input="\n".join(lines))
        self._make_links()

    def _picture(self) -> tuple[Any, ...]:
        """Return what a test may change of the host's namespace and of root's rules."""
        batch = "link\naddress\nroute\nrule\n"
        shown = self.ip("-o", "-n", self.host, "-batch", "-", stdin=batch)
        links = [line for line in shown.splitlines() if ": <" in line]
        names = {(line.split(": ")[1], *re.findall(r"(?:altname|alias|mtu) \S+", line)) for line in links}
        other = [line for line in shown.splitlines() if ": <" not in line and "inet6 fe80" not in line]
        return names, other, self.state(), (self.root / "etc" / files.NAME).read_text()

    def renew(self) -> bool:
        """Make the node as it was at first, for another test; return whether that was possible."""
        pods, used = self.pods, self._used
        if self.drafts() or self.locks() or self._has_processes():
            return False
        for name in pods:
            netns.try_ip("netns", "del", name)
        for name in vars(self).keys() - self._settings.keys() - {"_settings"}:
            delattr(self, name)
        vars(self).update(self._settings | {"pods": [], "_used": used + len(pods)})
        if self._picture() != self._first:
            self._make_links_anew()
            picture = self._picture()
            if (picture[:2], picture[3]) != (self._first[:2], self._first[3]):
                return False
            self._first = self._settings["_first"] = picture
        self._tidy()
        build_tree(self.root / "tree", pf="pf0", vfs=self.tree.vfs, numa=0)
        self.reindex()
        return True

    def _tidy(self) -> None:
        """Remove the files that a test has left."""
        for top, kept in ((self.root, self._own), (self.run_dir, self._running)):
            for path in top.iterdir() if top.exists() else ():
                if path.name in kept:
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def allow(self, tokens: str = "", **lists: Sequence[str | Path]) -> None:
        """Write root's rules: the node's own directory for every key that names a file, but for ``lists``."""
        whole = {key: [self.root] for key in files.DEFAULTS} | lists
        lines = [f"{key} = {json.dumps([str(each) for each in paths])}" for key, paths in whole.items()]
        path = self.root / "etc" / files.NAME
        path.parent.mkdir(mode=0o755, exist_ok=True)
        path.write_text("\n".join(["[allow]", *lines, "[tokens]", tokens]))
        path.chmod(0o644)

    ip = staticmethod(netns.ip)

    def nip(self, *words: str, stdin: str = "") -> str:
        """Run ip(8) in the host's namespace."""
        said = self.ip("-n", self.host, *words, stdin=stdin)
        if stdin or "add" in words:
            self.reindex()
        return said

    def link(self, name: str, pod: str = "") -> dict[str, Any]:
        return netns.link(name, pod or self.host)

    def addresses(self, name: str, pod: str = "") -> list[str]:
        """Return the addresses of a device without its link-local ones."""
        return netns.addresses(name, pod or self.host)

    def addresses_of(self, pod: str) -> str:
        """Return the IPv4 addresses of all devices in a namespace as ip(8) shows them; "" without any."""
        return self.ip("-o", "-4", "-n", pod, "address")

    def routes(self, pod: str, *words: str, family: str = "-4") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(
            self.ip("-j", "-d", family, "-n", pod, "route", "show", *words)
        )
        return found

    def builtin(self, **more: Any) -> dict[str, Any]:
        """Return a configuration for VF 0 with an address of the built-in host-local."""
        return self.conf(**{"ipam": self.host_local(delegate=False), "vf": 0} | more)

    def by_device(self, **more: Any) -> dict[str, Any]:
        """Return a configuration for VF 0 as a device plugin completes it."""
        base = {"deviceID": self.tree.pci(0), "master": None, "ipam": self.host_local(delegate=False)}
        return self.conf(**base | {"cniVersion": "1.1.0"} | more)

    def reindex(self) -> None:
        """Write the devices' indices to the tree: the plugin tells by them whether a name is a VF's."""
        for item in json.loads(self.nip("-j", "link", "show")):
            path = self.tree.sys / "class/net" / item["ifname"] / "ifindex"
            if path.exists():
                path.write_text(f"{item['ifindex']}\n")

    def return_device(self, pod: str, name: str = "", ifname: str = "eth0", index: int = 0) -> None:
        """Do what the kernel does with a VF when its namespace ends; a stand-in would be deleted."""
        name = name or self.tree.netdev(index)
        self.ip("-n", pod, "link", "set", ifname, "down")
        self.ip("-n", pod, "link", "set", ifname, "netns", self.host, "name", name)
        self.tree.remove_netdev(index)
        self.tree.add_netdev(index, name)
        self.reindex()

    def end(self, pod: str) -> None:
        """End a pod: its namespace is deleted."""
        self.ip("netns", "del", pod)
        self.pods.remove(pod)

    def links(self) -> set[str]:
        return {item["ifname"] for item in json.loads(self.nip("-j", "link", "show"))}

    def delegate(self, name: str, script: str) -> Path:
        """Install an IPAM plugin: a shell script that can use $ROOT; each call is a line in ``calls()``."""
        path = self.root / "bin" / name
        path.parent.mkdir(exist_ok=True)
        log = f'echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_ARGS" >> {self.root}/calls'
        path.write_text(f"#!/bin/sh\nROOT={self.root}\n{log}\n{script}\nexit 0\n")
        path.chmod(0o755)
        return path

    def other_ipam(self, name: str = "txipam", **scripts: str) -> dict[str, Any]:
        """Install an IPAM plugin with a script for each verb; return its ``ipam`` object.

        Without a script for ADD, the plugin gives the address 10.1.0.2/24.
        """
        given = {"ADD": said(ADDRESS)} | scripts
        cases = "\n".join(f"{verb}) {script} ;;" for verb, script in given.items())
        self.delegate(name, f'case "$CNI_COMMAND" in\n{cases}\nesac')
        return {"type": name, "delegate": True}

    def calls(self) -> list[str]:
        """Return the verbs that ``delegate``'s plugins were called with, in order."""
        path = self.root / "calls"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []

    def settings(self) -> dict[str, str]:
        return {
            "CNI_PATH": self.search,
            "PATH": os.environ["PATH"],
            "SRIOV_FAST_BACKEND": self.backend,
            "SRIOV_FAST_SYS": str(self.tree.sys),
            "SRIOV_FAST_PROC": str(self.tree.proc),
            "SRIOV_FAST_RUN": str(self.run_dir),
            "SRIOV_FAST_STATE": str(self.root / "state"),
            "SRIOV_FAST_SRIOV_CNI": str(self.root / "sriov-cni"),
            "SRIOV_FAST_KUBELET": str(self.root / "kubelet"),
            "SRIOV_FAST_NETWORKS": str(self.root / "networks"),
            "SRIOV_FAST_SOCKET": self.socket,
            "SRIOV_FAST_ETC": str(self.root / "etc"),
        }

    def enter(self) -> list[str]:
        """Return the words that execute a program in the host's namespace."""
        return ["nsenter", f"--net=/run/netns/{self.host}", "--"]

    def command(self) -> list[str]:
        """Return the words that execute the plugin in the host's namespace."""
        paths = [str(Path(__file__).parents[2] / "src"), *(p for p in sys.path if p.endswith("-packages"))]
        if not self.options and self.prelude == "pass":
            return [*self.enter(), self.executable]
        program = LAUNCHER.format(path=paths, prelude=self.prelude)
        return [*self.enter(), sys.executable, *self.options, "-IS", "-c", program]

    def operate(self, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run the operator's command on the node."""
        line = [*self.enter(), sys.executable, "-m", "sriov_fast.cli", *words]
        environment = self.environment("", "") | {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(line, env=environment, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == status, (words, done.stdout, done.stderr)
        return done

    def settle(self) -> None:
        """Wait until nothing of the plugin's is at work any more: what it started may live longer than it."""
        wait_for(lambda: not self._has_processes(), "the plugin's processes do not end")

    def homed(self) -> None:
        """Wait until every VF that was given back is home: it is, when a plugin of its own has ended."""

    def _has_processes(self) -> bool:
        return bool(self._processes())

    def _processes(self) -> list[int]:
        """Return the processes that this node's plugin is, or has started."""
        mark = f"SRIOV_FAST_RUN={self.run_dir}\0".encode()
        found = []
        for entry in os.listdir("/proc"):
            try:
                if entry.isdigit() and mark in Path(f"/proc/{entry}/environ").read_bytes():
                    found.append(int(entry))
            except OSError:
                continue
        return found

    def held(self, prefix: str = "") -> list[str]:
        """Return the locks that somebody has (/proc/locks); a file alone may be a dead one's."""
        inodes = {line.split()[5].rpartition(":")[2] for line in Path("/proc/locks").read_text().splitlines()}
        return [name for name in self.locks() if name.startswith(prefix) and self._inode(name) in inodes]

    def _inode(self, lock: str) -> str:
        try:
            return str((self.run_dir / "locks" / lock).stat().st_ino)
        except FileNotFoundError:
            return ""

    def announcing(self, pod: str) -> bool:
        """Say whether somebody has a packet socket in the pod (packet(7)); one that is gone has none."""
        words = ["nsenter", f"--net=/run/netns/{pod}", "cat", "/proc/net/packet"]
        done = subprocess.run(words, check=False, capture_output=True)
        return len(done.stdout.splitlines()) > 1

    # --- what is there

    def state(self) -> State:
        """Return every stand-in in the host by name, with what ip(8) and ethtool(8) show of it."""
        shown = json.loads(self.nip("-j", "-d", "link", "show", "type", "veth"))
        mine = {self.tree.netdev(index) for index in range(self.tree.vfs)}
        return {item["ifname"]: self._device(item) for item in shown if item["ifname"] in mine}

    def _device(self, shown: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in shown.items() if key not in _VOLATILE}
        flags = sorted(_SETTABLE_FLAGS & set(shown["flags"]))
        names = sorted(shown.get("altnames", ()))
        return kept | {"flags": flags, "altnames": names} | devices.settings(self.host, shown["ifname"])

    def snapshot(self) -> dict[str, Any]:
        """Return all that a failed ADD, or an ADD and its DEL, must leave as it was."""
        pods = {pod: self.ip("-o", "-n", pod, "address") + self.ip("-n", pod, "route") for pod in self.pods}
        pods = {pod: netns.without_dad(text) for pod, text in pods.items()}
        masks = [self.tree.mask(irq) for index in range(self.tree.vfs) for irq in self.tree.irqs(index)]
        return {
            "vfs": self.state(),
            "records": self.records(),
            "drafts": self.drafts(),
            "locks": self.locks(),
            "leases": self.leases(),
            "pods": pods,
            "masks": {str(path): path.read_text() for path in masks if path.exists()},
        }

    def kept(self) -> dict[str, Any]:
        """Return what a failed DEL must leave: ``snapshot`` without IPv6 addresses (DAD takes a while)."""
        return self.snapshot() | {"pods": {pod: self.addresses_of(pod) for pod in self.pods}}

    def close(self) -> None:
        super().close()
        netns.try_ip("netns", "del", self.host)
        shutil.rmtree(self.root, ignore_errors=True)


class ResidentNode(Node):
    """A node with the client and a server; ``options`` are the server's.

    ``servers`` are all that there were, ``server`` is the last.
    """

    socket = ""  # where SRIOV_FAST_RUN says
    options_of_server: tuple[str, ...] = ()
    may_fall_back = False
    _own = ("run", "etc", "sriov-fast", "interpreter", "sriov", "server.log")
    _running = ("server.lock", "sriov.sock")

    def __init__(self, root: Path, vfs: int = 4, backend: str = "cython") -> None:
        super().__init__(root, vfs, backend)
        self.servers: list[Server] = []
        self._install()
        self.serve()
        self._remember()

    def _install(self) -> None:
        """Write what ``sriov-fast install`` writes, and have it told where that falls back."""
        program = install.executable(install.PROGRAMS["sriov-fast"])
        binary = client.binary()
        assert binary, "the client in C is not built: run `make build`"
        shell = IN_PROCESS.replace("ROOT", str(self.root)).replace("PYTHON", sys.executable)
        trailer = install.trailer(
            install.PROGRAMS["sriov"], str(self.root / "interpreter"), install.search_path()
        )
        written = {
            "sriov-fast": program,
            "interpreter": shell.encode(),
            "sriov": binary.read_bytes() + trailer,
        }
        for name, content in written.items():
            (self.root / name).write_bytes(content)
            (self.root / name).chmod(0o755)

    @property
    def server(self) -> Server:
        return self.servers[-1]

    def serve(
        self,
        *options: str,
        enter: Sequence[str] = (),
        env: dict[str, str] | None = None,
        files: Sequence[int] = (),
    ) -> Server:
        """Start another server, with the node's options if none are given; see that it is ``ready``.

        ``enter`` are words in front of its command, ``env`` is added to its environment.
        """
        program = str(self.root / "sriov-fast")
        words = [*self.enter(), *enter, program, "serve", *(options or self.options_of_server)]
        environment = {key: value for key, value in self.settings().items() if value} | (env or {})
        del environment["CNI_PATH"]
        self.servers.append(Server(words, environment, self.root / "server.log", files))
        return self.server

    def again(self, *options: str) -> Server:
        """Replace the server by another one; return that when it serves."""
        self.server.stop()
        return self.serve(*options).ready()

    def command(self) -> list[str]:
        assert (self.options, self.prelude) == ((), "pass"), "there is no interpreter to tell"
        if self.server.process.poll() is None:
            self.server.ready()
        return [*self.enter(), str(self.root / "sriov")]

    def in_process(self) -> list[str]:
        """Return the verbs that no server served; "again" stands behind one that a server had got."""
        path = self.root / "in-process"
        return path.read_text().splitlines() if path.exists() else []

    def delete(self, conf: dict[str, Any], pod: str, **more: Any) -> Outcome:
        done = super().delete(conf, pod, **more)
        self.homed()
        return done

    def returning(self) -> list[str]:
        """Return the records of VFs that are their containers' no more and still on their way."""
        return [name for name in self.records() if "~~" in name and "~~~" not in name]

    def homed(self) -> None:
        """Wait until no VF is on its way home any more, and none is held that is nobody's."""
        wait_for(lambda: not self.returning() and not self._held_free(), "a VF does not come home")

    def _held_free(self) -> set[str]:
        return {name[3:] for name in self.held("vf-")} - {name.partition("~")[0] for name in self.records()}

    def settle(self) -> None:
        super().settle()
        self.homed()
        wait_for(lambda: not any(map(self.announcing, self.pods)), "an announcement does not end")

    def _has_processes(self) -> bool:
        own = {pid for server in self.servers for pid in (server.pid, *server.workers())}
        return bool(set(self._processes()) - own)

    def touched(self) -> list[str]:
        return [name for name in super().touched() if name not in self._running]

    def renew(self) -> bool:
        if len(self.servers) > 1 or self.server.process.poll() is not None or not self.server.rests():
            return False
        self._see_that_all_went_well()
        if self.records():
            self.run("GC", self.conf(cniVersion="1.1.0") | {"cni.dev/valid-attachments": []})
        if not super().renew():
            return False
        self.server.log.write_text("")
        return True

    def _see_that_all_went_well(self) -> None:
        assert "Traceback" not in self.server.said(), self.server.said()
        assert self.may_fall_back or not self.in_process(), self.in_process()

    def close(self) -> None:
        """Stop the server and look whether all went well; the server had no fault of its own."""
        try:
            for server in self.servers:
                server.stop()
            self._see_that_all_went_well()
        finally:
            for server in self.servers:
                if server.process.poll() is None:
                    server.process.kill()
                    server.process.wait()
            super().close()


class DeferredNode(ResidentNode):
    """Its server answers a DEL before the VF is home."""

    options_of_server = ("--defer-release",)


def held_up(node: Node, kind: str = "host-local") -> None:
    """Install a delegate whose ADD waits until ``let_go``, and then gives an address."""
    say = 'echo $$ > "$ROOT/waits-$CNI_CONTAINERID"'
    wait = 'while [ -d "$ROOT" ] && [ ! -e "$ROOT/go" ]; do sleep 0.02; done'
    node.other_ipam(kind, ADD=f"{say}\n{wait}\n{said(ADDRESS)}")


def said(document: object) -> str:
    """Return a command that prints JSON."""
    return f"printf '%s' {shlex.quote(json.dumps(document))}"


def waits(node: Node, container: str) -> int:
    """Wait until the delegate of a container's ADD does; return its process."""
    path = node.root / f"waits-{container}"
    wait_for(lambda: path.exists() and path.read_text().strip(), "the delegate was not started")
    return int(path.read_text())


def let_go(node: Node) -> None:
    (node.root / "go").touch()


@contextmanager
def flocked(path: Path) -> Iterator[None]:
    """Hold a file lock, as another process does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def tmpfs(path: Path, options: str) -> Iterator[None]:
    """Mount a small file system on a directory."""
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill(path: Path) -> Path:
    """Take all space of a file system; return the file that has it."""
    with (path / "ballast").open("wb", buffering=0) as file:
        for size in (4096, 1):
            with suppress(OSError):
                while True:
                    file.write(b"x" * size)
    return path / "ballast"


KINDS: dict[str, type[Node]] = {
    "process": Node,
    "resident": ResidentNode,
    "deferred": DeferredNode,
}
MakeNode = Callable[..., Any]  # the mark ``modes`` says which kind of node
