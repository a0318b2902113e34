"""A node without a card: a namespace as the host, veth pairs as VFs, and a sysfs tree of the VFs.

The plugin is the installed executable, and works on the kernel's devices. Only the ``lab`` tier has settings
through the PF, and interrupts: these need a card.
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
# Replaces the interpreter that the client executes without a server; the script logs each execution.
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
# Attributes that the kernel changes with the state of a device, or with a move.
_VOLATILE = ("ifindex", "operstate", "link_index", "link", "link_netnsid", "qdisc", "flags")
_SETTABLE_FLAGS = {"UP", "MULTICAST", "PROMISC", "ALLMULTI", "NOARP"}


class Node(Runtime):
    """A namespace as the host, with ``vfs`` veth pairs as VFs, and the pods of this node.

    The plugin is the installed executable. With ``options`` for the interpreter, or with a ``prelude`` of
    statements to execute before the plugin, this interpreter executes the plugin.
    """

    master = "pf0"
    executable = ""
    socket = "none"  # of the resident server
    _own: tuple[str, ...] = ("run", "etc")  # files of the node itself, in ``root``
    _running: tuple[str, ...] = ()  # files of a running server, in ``run_dir``

    @classmethod
    def install(cls, directory: Path) -> None:
        """Write the plugin's executable once for all nodes."""
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
        """Save the attributes that ``renew`` restores."""
        self._settings = {name: value for name, value in vars(self).items() if name != "_settings"}

    def _make_links(self) -> None:
        lines = ["link set lo up", "link add pf0 type veth peer name pf0-peer"]
        for index in range(self.tree.vfs):
            lines.append(f"link add {self.tree.netdev(index)} type veth peer name peer{index}")
            lines.append(f"link set peer{index} up")
        self.nip("-batch", "-", stdin="\n".join(lines))

    def _make_links_anew(self) -> None:
        """Replace all devices.

        Deletions may fail: a pair ends with either of its devices, also with one in a deleted namespace.
        """
        lines = [f"link del {name}" for name in self.links() - {"lo"}]
        words = ["ip", "-n", self.host, "-force", "-batch", "-"]
        subprocess.run(words, check=False, capture_output=True, text=True, input="\n".join(lines))
        self._make_links()

    def _picture(self) -> tuple[Any, ...]:
        """Return the parts of the host's namespace and of root's rules that a test may change."""
        batch = "link\naddress\nroute\nrule\n"
        shown = self.ip("-o", "-n", self.host, "-batch", "-", stdin=batch)
        links = [line for line in shown.splitlines() if ": <" in line]
        names = {(line.split(": ")[1], *re.findall(r"(?:altname|alias|mtu) \S+", line)) for line in links}
        other = [line for line in shown.splitlines() if ": <" not in line and "inet6 fe80" not in line]
        return names, other, self.state(), (self.root / "etc" / files.NAME).read_text()

    def renew(self) -> bool:
        """Restore the initial state of the node for another test; return whether this was possible."""
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
        """Write root's rules: each key allows files in the node's directory, except the keys in ``lists``."""
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
        """Return a configuration for VF 0 with an address from the built-in host-local."""
        return self.conf(**{"ipam": self.host_local(delegate=False), "vf": 0} | more)

    def by_device(self, **more: Any) -> dict[str, Any]:
        """Return a configuration for VF 0 as a device plugin completes it."""
        base = {"deviceID": self.tree.pci(0), "master": None, "ipam": self.host_local(delegate=False)}
        return self.conf(**base | {"cniVersion": "1.1.0"} | more)

    def reindex(self) -> None:
        """Write the devices' indices to the sysfs tree: the plugin identifies a VF's device by its index."""
        for item in json.loads(self.nip("-j", "link", "show")):
            path = self.tree.sys / "class/net" / item["ifname"] / "ifindex"
            if path.exists():
                path.write_text(f"{item['ifindex']}\n")

    def return_device(self, pod: str, name: str = "", ifname: str = "eth0", index: int = 0) -> None:
        """Move a VF to the host, as the kernel does when a namespace ends (it deletes veth devices)."""
        name = name or self.tree.netdev(index)
        self.ip("-n", pod, "link", "set", ifname, "down")
        self.ip("-n", pod, "link", "set", ifname, "netns", self.host, "name", name)
        self.tree.remove_netdev(index)
        self.tree.add_netdev(index, name)
        self.reindex()

    def end(self, pod: str) -> None:
        """Delete a pod's namespace."""
        self.ip("netns", "del", pod)
        self.pods.remove(pod)

    def links(self) -> set[str]:
        return {item["ifname"] for item in json.loads(self.nip("-j", "link", "show"))}

    def delegate(self, name: str, script: str) -> Path:
        """Install a shell script as an IPAM plugin, and return its path.

        The script can use $ROOT, the node's directory. ``calls()`` lists the verbs of its calls.
        """
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
        """Return the command prefix that executes a program in the host's namespace."""
        return ["nsenter", f"--net=/run/netns/{self.host}", "--"]

    def command(self) -> list[str]:
        """Return the command that executes the plugin in the host's namespace."""
        paths = [str(Path(__file__).parents[2] / "src"), *(p for p in sys.path if p.endswith("-packages"))]
        if not self.options and self.prelude == "pass":
            return [*self.enter(), self.executable]
        program = LAUNCHER.format(path=paths, prelude=self.prelude)
        return [*self.enter(), sys.executable, *self.options, "-IS", "-c", program]

    def operate(self, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run the operator's command on the node; it must end with ``status``."""
        line = [*self.enter(), sys.executable, "-m", "sriov_fast.cli", *words]
        environment = self.environment("", "") | {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(line, env=environment, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == status, (words, done.stdout, done.stderr)
        return done

    def settle(self) -> None:
        """Wait until the plugin's processes have ended: its children may run longer than the plugin."""
        wait_for(lambda: not self._has_processes(), "the plugin's processes do not end")

    def homed(self) -> None:
        """Wait until all released VFs are in the host; without a server, a DEL ends only then."""

    def _has_processes(self) -> bool:
        return bool(self._processes())

    def _processes(self) -> list[int]:
        """Return the processes of this node's plugins and servers, and their children."""
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
        """Return the locks that a process holds (/proc/locks); an ended process may have left a lock file."""
        inodes = {line.split()[5].rpartition(":")[2] for line in Path("/proc/locks").read_text().splitlines()}
        return [name for name in self.locks() if name.startswith(prefix) and self._inode(name) in inodes]

    def _inode(self, lock: str) -> str:
        try:
            return str((self.run_dir / "locks" / lock).stat().st_ino)
        except FileNotFoundError:
            return ""

    def announcing(self, pod: str) -> bool:
        """Return whether a process has a packet socket (packet(7)) in the pod; False for a deleted pod."""
        words = ["nsenter", f"--net=/run/netns/{pod}", "cat", "/proc/net/packet"]
        done = subprocess.run(words, check=False, capture_output=True)
        return len(done.stdout.splitlines()) > 1

    # --- state

    def state(self) -> State:
        """Return the VFs' devices in the host by name, with their settings from ip(8) and ethtool(8)."""
        shown = json.loads(self.nip("-j", "-d", "link", "show", "type", "veth"))
        mine = {self.tree.netdev(index) for index in range(self.tree.vfs)}
        return {item["ifname"]: self._device(item) for item in shown if item["ifname"] in mine}

    def _device(self, shown: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in shown.items() if key not in _VOLATILE}
        flags = sorted(_SETTABLE_FLAGS & set(shown["flags"]))
        names = sorted(shown.get("altnames", ()))
        return kept | {"flags": flags, "altnames": names} | devices.settings(self.host, shown["ifname"])

    def snapshot(self) -> dict[str, Any]:
        """Return the state that a failed ADD, or an ADD and its DEL, must restore."""
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
        """Return the state that a failed DEL must keep.

        This is ``snapshot``, but with only the IPv4 addresses of pods: DAD delays IPv6 addresses.
        """
        return self.snapshot() | {"pods": {pod: self.addresses_of(pod) for pod in self.pods}}

    def close(self) -> None:
        super().close()
        netns.try_ip("netns", "del", self.host)
        shutil.rmtree(self.root, ignore_errors=True)


class ResidentNode(Node):
    """A node with the client in C and a server; ``options_of_server`` are the server's options.

    ``servers`` are all servers that were started, ``server`` is the last one.
    """

    socket = ""  # the default one, in SRIOV_FAST_RUN
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
        """Write the files of ``sriov-fast install``, and an interpreter that logs calls without a server."""
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
        """Start another server, by default with the node's options; the caller waits for it by ``ready``.

        ``enter`` is a prefix of its command, ``env`` is added to its environment, and it inherits the
        descriptors ``files``.
        """
        program = str(self.root / "sriov-fast")
        words = [*self.enter(), *enter, program, "serve", *(options or self.options_of_server)]
        environment = {key: value for key, value in self.settings().items() if value} | (env or {})
        del environment["CNI_PATH"]
        self.servers.append(Server(words, environment, self.root / "server.log", files))
        return self.server

    def again(self, *options: str) -> Server:
        """Replace the server; return the new one when it is ready."""
        self.server.stop()
        return self.serve(*options).ready()

    def command(self) -> list[str]:
        assert (self.options, self.prelude) == ((), "pass"), "there is no interpreter to tell"
        if self.server.process.poll() is None:
            self.server.ready()
        return [*self.enter(), str(self.root / "sriov")]

    def in_process(self) -> list[str]:
        """Return the verbs that ran without a server; "again" marks those that a server had received."""
        path = self.root / "in-process"
        return path.read_text().splitlines() if path.exists() else []

    def delete(self, conf: dict[str, Any], pod: str, **more: Any) -> Outcome:
        done = super().delete(conf, pod, **more)
        self.homed()
        return done

    def returning(self) -> list[str]:
        """Return the records of released VFs that are still moving to the host."""
        return [name for name in self.records() if "~~" in name and "~~~" not in name]

    def homed(self) -> None:
        """Wait until no VF is moving to the host, and no VF without a record is locked."""
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
        """Stop the servers; fail if one logged a traceback, or the client ran the plugin unexpectedly."""
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
    """A node with a server that answers a DEL before the VF is in the host."""

    options_of_server = ("--defer-release",)


def held_up(node: Node, kind: str = "host-local", **scripts: str) -> None:
    """Install a delegate with an ADD that waits for ``let_go`` and then returns an address.

    ``scripts`` are those of other verbs.
    """
    say = 'echo $$ > "$ROOT/waits-$CNI_CONTAINERID"'
    wait = 'while [ -d "$ROOT" ] && [ ! -e "$ROOT/go" ]; do sleep 0.02; done'
    node.other_ipam(kind, ADD=f"{say}\n{wait}\n{said(ADDRESS)}", **scripts)


def said(document: object) -> str:
    """Return a shell command that prints a document as JSON."""
    return f"printf '%s' {shlex.quote(json.dumps(document))}"


def waits(node: Node, container: str) -> int:
    """Wait until the delegate of a container's ADD waits for ``let_go``; return its process ID."""
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
    """Mount a tmpfs on a directory."""
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill(path: Path) -> Path:
    """Fill a file system with one file; return the file."""
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
