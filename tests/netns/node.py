"""A node made of network namespaces: veth pairs stand in for a PF's VFs, a made-up sysfs tree describes them.

The plugin is the real executable and the kernel's answers are real; only what needs the card is missing (settings
through the PF, interrupts), and the ``lab`` tier has that.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from sysfs_tree import Tree, build_tree

DELEGATES = "/usr/lib/cni"
LAUNCHER = "import sys; sys.path[:0] = {path!r}; from sriov_fast.entry import main; main()"


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
    """A namespace that plays the host, with ``vfs`` stand-ins, and the pods made on it."""

    def __init__(self, root: Path, vfs: int = 4, backend: str = "cython") -> None:
        self.root = root
        self.id = uuid.uuid4().hex[:8]
        self.host = f"node-{self.id}"
        self.backend = backend
        self.pods: list[str] = []
        self.tree: Tree = build_tree(root / "tree", pf="pf0", vfs=vfs, numa=0)
        self.run_dir = root / "run"
        self.ip("netns", "add", self.host)
        self.nip("link", "set", "lo", "up")
        self.nip("link", "add", "pf0", "type", "veth", "peer", "name", "pf0-peer")
        for index in range(vfs):
            name = self.tree.netdev(index)
            self.nip("link", "add", name, "type", "veth", "peer", "name", f"peer{index}")
            self.nip("link", "set", f"peer{index}", "up")

    def ip(self, *words: str) -> str:
        return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout

    def nip(self, *words: str) -> str:
        """Run ip(8) in the host's namespace."""
        return self.ip("-n", self.host, *words)

    def link(self, name: str, pod: str = "") -> dict[str, Any]:
        shown: list[dict[str, Any]] = json.loads(self.ip("-j", "-n", pod or self.host, "addr", "show", "dev", name))
        return shown[0]

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
        return {"type": "host-local", "subnet": subnet, "dataDir": str(self.root / "ipam"), **more}

    def environment(self, command: str, pod: str, ifname: str, container: str, args: str) -> dict[str, str]:
        given = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container or pod,
            "CNI_NETNS": pod if pod.startswith("/") or not pod else f"/run/netns/{pod}",
            "CNI_IFNAME": ifname,
            "CNI_ARGS": args,
            "CNI_PATH": f"{self.root}/bin:{DELEGATES}",
            "PATH": os.environ["PATH"],
            "SRIOV_FAST_BACKEND": self.backend,
            "SRIOV_FAST_SYS": str(self.tree.sys),
            "SRIOV_FAST_PROC": str(self.tree.proc),
            "SRIOV_FAST_RUN": str(self.run_dir),
        }
        return {key: value for key, value in given.items() if value}

    def command(self) -> list[str]:
        """The words that execute the plugin in the host's namespace."""
        paths = [str(Path(__file__).parents[2] / "src"), *(p for p in sys.path if p.endswith("-packages"))]
        enter = ["nsenter", f"--net=/run/netns/{self.host}", "--"]
        return [*enter, sys.executable, "-IS", "-c", LAUNCHER.format(path=paths)]

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
    ) -> subprocess.Popen[bytes]:
        environment = self.environment(command, pod, ifname, container, args) | (env or {})
        stdin = conf if isinstance(conf, bytes) else json.dumps(conf).encode()
        process = subprocess.Popen(
            [*wrap, *self.command()],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdin
        process.stdin.write(stdin)
        process.stdin.close()
        process.stdin = None
        return process

    def finish(self, process: subprocess.Popen[bytes]) -> Outcome:
        out, err = process.communicate(timeout=90)
        return Outcome(subprocess.CompletedProcess(process.args, process.returncode, out, err))

    def run(self, command: str, conf: dict[str, Any] | bytes, pod: str = "", **more: Any) -> Outcome:
        """Execute the plugin and return what it said."""
        return self.finish(self.start(command, conf, pod, **more))

    def add(self, conf: dict[str, Any], pod: str, **more: Any) -> Any:
        done = self.run("ADD", conf, pod, **more)
        assert done.status == 0, done
        return done.json

    def delete(self, conf: dict[str, Any], pod: str, **more: Any) -> None:
        done = self.run("DEL", conf, pod, **more)
        assert done.status == 0, done
        assert done.stdout == b""

    def records(self) -> list[str]:
        directory = self.run_dir / "vfs"
        return sorted(os.listdir(directory)) if directory.exists() else []

    def leases(self, network: str = "net1") -> list[str]:
        directory = self.root / "ipam" / network
        if not directory.exists():
            return []
        return sorted(name for name in os.listdir(directory) if name[0].isdigit())

    def state(self) -> dict[str, tuple[str, int, bool]]:
        """Every stand-in that is in the host: {name: (MAC, MTU, up)}."""
        shown = json.loads(self.nip("-j", "link", "show", "type", "veth"))
        mine = {self.tree.netdev(index) for index in range(self.tree.vfs)}
        return {
            item["ifname"]: (item["address"], item["mtu"], "UP" in item["flags"])
            for item in shown
            if item["ifname"] in mine
        }

    def close(self) -> None:
        for name in [*self.pods, self.host]:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        shutil.rmtree(self.root, ignore_errors=True)
