"""A node made of network namespaces: veth pairs stand in for a PF's VFs, a made-up sysfs tree describes them.

The plugin is the real executable and the kernel's answers are real; only what needs the card is missing
(settings through the PF, interrupts), and the ``lab`` tier has that.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sysfs_tree import Tree, build_tree

import devices
from sriov_fast.cli import install
from sriov_fast.common import files

DELEGATES = "/usr/lib/cni"
LAUNCHER = (
    "import sys; sys.path[:0] = {path!r}; {prelude}; from sriov_fast.plugin.process import main; main()"
)

State = dict[str, dict[str, Any]]
# What the kernel changes with the state of a device, or with a move.
_VOLATILE = ("ifindex", "operstate", "link_index", "link", "link_netnsid", "qdisc", "flags")
_SETTABLE_FLAGS = {"UP", "MULTICAST", "PROMISC", "ALLMULTI", "NOARP"}


class Outcome:
    """What one execution of the plugin gave."""

    def __init__(self, done: subprocess.CompletedProcess[bytes]) -> None:
        self.status = done.returncode
        self.stdout = done.stdout
        self.stderr = done.stderr.decode()
        self.json: Any = json.loads(done.stdout) if done.stdout.strip() else None

    def __repr__(self) -> str:
        return f"status {self.status}\nstdout {self.stdout.decode()}\nstderr {self.stderr}"


class Node:
    """A namespace that plays the host, with ``vfs`` stand-ins, and the pods made on it.

    The plugin is the installed executable; with ``options`` for the interpreter, or a ``prelude`` to run
    before the plugin, that interpreter.
    """

    executable = ""
    socket = "none"  # of the resident server

    @classmethod
    def install(cls, directory: Path) -> None:
        """Write the executable, once for all nodes."""
        path = directory / "sriov"
        install.write_executable(path, install.executable(install.PROGRAMS["sriov"], "client"))
        cls.executable = str(path)

    def __init__(self, root: Path, vfs: int = 4, backend: str = "cython") -> None:
        self.root = root
        self.id = uuid.uuid4().hex[:8]
        self.host = f"node-{self.id}"
        self.backend = backend
        self.options: tuple[str, ...] = ()
        self.prelude = "pass"
        self.pods: list[str] = []
        self.tree: Tree = build_tree(root / "tree", pf="pf0", vfs=vfs, numa=0)
        self.run_dir = root / "run"
        self.allow()
        self.search = f"{root}/bin:{DELEGATES}"
        self.ip("netns", "add", self.host)
        lines = ["link set lo up", "link add pf0 type veth peer name pf0-peer"]
        for index in range(vfs):
            lines.append(f"link add {self.tree.netdev(index)} type veth peer name peer{index}")
            lines.append(f"link set peer{index} up")
        self.nip("-batch", "-", stdin="\n".join(lines))

    def allow(self, tokens: str = "", **lists: Sequence[str | Path]) -> None:
        """Write root's rules: the node's own directory for every key that names a file, but for ``lists``."""
        whole = {key: [self.root] for key in files.DEFAULTS} | lists
        lines = [f"{key} = {json.dumps([str(each) for each in paths])}" for key, paths in whole.items()]
        path = self.root / "etc" / files.NAME
        path.parent.mkdir(mode=0o755, exist_ok=True)
        path.write_text("\n".join(["[allow]", *lines, "[tokens]", tokens]))
        path.chmod(0o644)

    def ip(self, *words: str, stdin: str = "") -> str:
        done = subprocess.run(["ip", *words], check=False, capture_output=True, text=True, input=stdin)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def nip(self, *words: str, stdin: str = "") -> str:
        """Run ip(8) in the host's namespace."""
        said = self.ip("-n", self.host, *words, stdin=stdin)
        if stdin or "add" in words:
            self.reindex()
        return said

    def link(self, name: str, pod: str = "") -> dict[str, Any]:
        shown: list[dict[str, Any]] = json.loads(
            self.ip("-j", "-n", pod or self.host, "addr", "show", "dev", name)
        )
        return shown[0]

    def addresses(self, name: str, pod: str = "") -> list[str]:
        """The addresses of a device but its link-local ones."""
        found = (item for item in self.link(name, pod)["addr_info"] if item["scope"] != "link")
        return [f"{item['local']}/{item['prefixlen']}" for item in found]

    def addresses_of(self, pod: str) -> str:
        """What ip(8) shows of the IPv4 addresses of all devices in a namespace; "" without any."""
        return self.ip("-o", "-4", "-n", pod, "address")

    def routes(self, pod: str, *words: str, family: str = "-4") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(
            self.ip("-j", "-d", family, "-n", pod, "route", "show", *words)
        )
        return found

    def reindex(self) -> None:
        """Write the devices' indices to the tree: the plugin tells by them whether a name is a VF's."""
        for item in json.loads(self.nip("-j", "link", "show")):
            path = self.tree.sys / "class/net" / item["ifname"] / "ifindex"
            if path.exists():
                path.write_text(f"{item['ifindex']}\n")

    def links(self) -> set[str]:
        return {item["ifname"] for item in json.loads(self.nip("-j", "link", "show"))}

    def pod(self) -> str:
        """Make a pod's namespace and return its name."""
        name = f"pod-{self.id}-{len(self.pods)}"
        self.ip("netns", "add", name)
        self.pods.append(name)
        return name

    def conf(self, **more: Any) -> dict[str, Any]:
        base = {"cniVersion": "1.0.0", "name": "net1", "type": "sriov", "master": "pf0"}
        return {key: value for key, value in (base | more).items() if value is not None}

    def host_local(self, subnet: str = "10.77.0.0/24", **more: Any) -> dict[str, Any]:
        """Return an ``ipam`` object; the real plugin serves it unless ``delegate`` says otherwise."""
        own = {"type": "host-local", "delegate": True, "subnet": subnet, "dataDir": str(self.root / "ipam")}
        return own | more

    def delegate(self, name: str, script: str) -> Path:
        """Install an IPAM plugin: a shell script that can use $ROOT; each call is a line in ``calls()``."""
        path = self.root / "bin" / name
        path.parent.mkdir(exist_ok=True)
        log = f'echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_ARGS" >> {self.root}/calls'
        path.write_text(f"#!/bin/sh\nROOT={self.root}\n{log}\n{script}\nexit 0\n")
        path.chmod(0o755)
        return path

    def calls(self) -> list[str]:
        """The verbs that ``delegate``'s plugins were called with, in order."""
        path = self.root / "calls"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []

    def environment(self, command: str, pod: str, ifname: str, container: str, args: str) -> dict[str, str]:
        given = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container or pod,
            "CNI_NETNS": pod if pod.startswith("/") or not pod else f"/run/netns/{pod}",
            "CNI_IFNAME": ifname,
            "CNI_ARGS": args,
            "CNI_PATH": self.search,
            "PATH": os.environ["PATH"],
            "SRIOV_FAST_BACKEND": self.backend,
            "SRIOV_FAST_SYS": str(self.tree.sys),
            "SRIOV_FAST_PROC": str(self.tree.proc),
            "SRIOV_FAST_RUN": str(self.run_dir),
            "SRIOV_FAST_STATE": str(self.root / "state"),
            "SRIOV_FAST_SOCKET": self.socket,
            "SRIOV_FAST_ETC": str(self.root / "etc"),
        }
        return {key: value for key, value in given.items() if value}

    def command(self) -> list[str]:
        """The words that execute the plugin in the host's namespace."""
        paths = [str(Path(__file__).parents[2] / "src"), *(p for p in sys.path if p.endswith("-packages"))]
        enter = ["nsenter", f"--net=/run/netns/{self.host}", "--"]
        if not self.options and self.prelude == "pass":
            return [*enter, self.executable]
        program = LAUNCHER.format(path=paths, prelude=self.prelude)
        return [*enter, sys.executable, *self.options, "-IS", "-c", program]

    def start(
        self,
        command: str,
        conf: dict[str, Any] | bytes,
        pod: str = "",
        *,
        ifname: str = "eth0",
        container: str = "",
        args: str = "",
        wrap: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        stdout: int = subprocess.PIPE,
    ) -> subprocess.Popen[bytes]:
        """Start the plugin; an empty value in ``env`` takes the variable away."""
        environment = self.environment(command, pod, ifname, container, args) | (env or {})
        stdin = conf if isinstance(conf, bytes) else json.dumps(conf).encode()
        process = subprocess.Popen(
            [*wrap, *self.command()],
            env={key: value for key, value in environment.items() if value},
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=subprocess.PIPE,
        )
        assert process.stdin
        try:
            process.stdin.write(stdin)
            process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended without reading
        process.stdin = None
        return process

    def finish(self, process: subprocess.Popen[bytes]) -> Outcome:
        out, err = process.communicate(timeout=90)
        return Outcome(subprocess.CompletedProcess(process.args, process.returncode, out or b"", err))

    def run(self, command: str, conf: dict[str, Any] | bytes, pod: str = "", **more: Any) -> Outcome:
        """Execute the plugin and return what it said."""
        return self.finish(self.start(command, conf, pod, **more))

    def add(self, conf: dict[str, Any], pod: str, **more: Any) -> Any:
        done = self.run("ADD", conf, pod, **more)
        assert done.status == 0, done
        return done.json

    def delete(self, conf: dict[str, Any], pod: str, **more: Any) -> Outcome:
        done = self.run("DEL", conf, pod, **more)
        assert done.status == 0, done
        assert done.stdout == b""
        return done

    def refused(
        self, code: int, command: str, conf: dict[str, Any] | bytes, pod: str = "", **more: Any
    ) -> str:
        """Execute the plugin, which must answer with one CNI error of that code; return msg and details."""
        done = self.run(command, conf, pod, **more)
        assert done.status == 1, done
        assert done.json["code"] == code, done
        assert {"cniVersion", "code", "msg"} <= set(done.json) <= {"cniVersion", "code", "msg", "details"}
        return f"{done.json['msg']}\n{done.json.get('details', '')}"

    def settle(self) -> None:
        """Wait until nothing of the plugin's is at work any more: what it started may live longer than it."""
        deadline = time.monotonic() + 30
        while self._has_processes():
            assert time.monotonic() < deadline, "the plugin's processes do not end"
            time.sleep(0.01)

    def homed(self) -> None:
        """Wait until every VF that was given back is home: it is, when a plugin of its own has ended."""

    def _has_processes(self) -> bool:
        return bool(self._processes())

    def _processes(self) -> list[int]:
        """The processes that this node's plugin is, or has started."""
        mark = f"SRIOV_FAST_RUN={self.run_dir}\0".encode()
        found = []
        for entry in os.listdir("/proc"):
            try:
                if entry.isdigit() and mark in Path(f"/proc/{entry}/environ").read_bytes():
                    found.append(int(entry))
            except OSError:
                continue
        return found

    def announcing(self, pod: str) -> bool:
        """Say whether somebody has a packet socket in the pod (packet(7)); one that is gone has none."""
        words = ["nsenter", f"--net=/run/netns/{pod}", "cat", "/proc/net/packet"]
        done = subprocess.run(words, check=False, capture_output=True)
        return len(done.stdout.splitlines()) > 1

    # --- what is there

    def touched(self) -> list[str]:
        """What the plugin has made in its directory."""
        return sorted(os.listdir(self.run_dir)) if self.run_dir.exists() else []

    def records(self) -> list[str]:
        directory = self.run_dir / "vfs"
        return sorted(name for name in os.listdir(directory) if name[0] != ".") if directory.exists() else []

    def drafts(self) -> list[str]:
        """Records that never became one."""
        return sorted(path.name for path in self.run_dir.glob("vfs/.*"))

    def record(self) -> Path:
        """The journal's only record."""
        (name,) = self.records()
        return self.run_dir / "vfs" / name

    def locks(self) -> list[str]:
        directory = self.run_dir / "locks"
        return sorted(os.listdir(directory)) if directory.exists() else []

    def leases(self, network: str = "net1") -> list[str]:
        directory = self.root / "ipam" / network
        if not directory.exists():
            return []
        return sorted(name for name in os.listdir(directory) if name[0].isdigit())

    def state(self) -> State:
        """Every stand-in that is in the host, by name: what ip(8) shows of it, what ethtool(8) can set."""
        shown = json.loads(self.nip("-j", "-d", "link", "show", "type", "veth"))
        mine = {self.tree.netdev(index) for index in range(self.tree.vfs)}
        return {item["ifname"]: self._device(item) for item in shown if item["ifname"] in mine}

    def _device(self, shown: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in shown.items() if key not in _VOLATILE}
        flags = sorted(_SETTABLE_FLAGS & set(shown["flags"]))
        names = sorted(shown.get("altnames", ()))
        return kept | {"flags": flags, "altnames": names} | devices.settings(self.host, shown["ifname"])

    def snapshot(self) -> dict[str, Any]:
        """All that a failed ADD, or an ADD and its DEL, must leave as it was."""
        pods = {pod: self.ip("-o", "-n", pod, "address") + self.ip("-n", pod, "route") for pod in self.pods}
        pods = {pod: text.replace(" tentative", "") for pod, text in pods.items()}  # it passes by itself
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
        """All that a DEL that fails must leave as it was: ``snapshot`` without IPv6 (DAD takes a while)."""
        return self.snapshot() | {"pods": {pod: self.addresses_of(pod) for pod in self.pods}}

    def close(self) -> None:
        for name in [*self.pods, self.host]:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        shutil.rmtree(self.root, ignore_errors=True)


MakeNode = Callable[..., Node]
