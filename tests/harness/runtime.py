"""A container runtime: executes the plugin with CNI_* in the environment and a configuration on stdin."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from pathlib import Path
from typing import Any

from harness import pod as pods

Conf = dict[str, Any] | bytes


class Outcome:
    """The result of one execution of the plugin."""

    def __init__(self, status: int, stdout: bytes, stderr: bytes) -> None:
        self.status = status
        self.stdout = stdout
        self.stderr = stderr.decode()
        self.json: Any = json.loads(stdout) if stdout.strip() else None

    def __repr__(self) -> str:
        return f"status {self.status}\nstdout {self.stdout.decode()}\nstderr {self.stderr}"


class Runtime:
    """A node's runtime: its network, its pods, and the plugin to execute.

    ``root`` is a directory for all files of the node. ``network`` is the network's name, ``master`` the PF,
    ``run_dir`` the plugin's directory of records and locks.
    """

    network = "net1"
    master = ""
    run_dir: Path
    time_limit = 90.0  # seconds for one execution

    def __init__(self, root: Path) -> None:
        self.root = root
        self.id = uuid.uuid4().hex[:8]
        self.pods: list[str] = []
        self._used = 0  # number of the pods of earlier tests

    def command(self) -> list[str]:
        """Return the command that executes the plugin."""
        raise NotImplementedError

    def settings(self) -> dict[str, str]:
        """Return CNI_PATH and the variables of the environment other than CNI_*."""
        return {}

    # --- networks

    def conf(self, **more: Any) -> dict[str, Any]:
        """Return a configuration; the value None removes a key."""
        base = {"cniVersion": "1.0.0", "name": self.network, "type": "sriov", "master": self.master}
        return {key: value for key, value in (base | more).items() if value is not None}

    def host_local(self, subnet: str = "10.77.0.0/24", **more: Any) -> dict[str, Any]:
        """Return an ``ipam`` object for host-local.

        The executable serves it, or with ``delegate=False`` the built-in plugin.
        """
        own = {"type": "host-local", "delegate": True, "subnet": subnet, "dataDir": str(self.root / "ipam")}
        return own | more

    def leases(self, network: str = "") -> list[str]:
        """Return the addresses that host-local has leased."""
        directory = self.root / "ipam" / (network or self.network)
        names = os.listdir(directory) if directory.exists() else []
        return sorted(name for name in names if name[0].isdigit())

    # --- pods

    def pod(self) -> str:
        """Make a pod's namespace; return its name, which is also the container's ID."""
        name = f"pod-{self.id}-{self._used + len(self.pods)}"
        pods.ip("netns", "add", name)
        self.pods.append(name)
        return name

    # --- the plugin

    def environment(
        self, command: str, pod: str, ifname: str = "eth0", container: str = "", args: str = ""
    ) -> dict[str, str]:
        """Return the environment of one execution."""
        given = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container or pod,
            "CNI_NETNS": pods.path_of(pod),
            "CNI_IFNAME": ifname,
            "CNI_ARGS": args,
            **self.settings(),
        }
        return {key: value for key, value in given.items() if value}

    def start(
        self,
        command: str,
        conf: Conf,
        pod: str = "",
        *,
        ifname: str = "eth0",
        container: str = "",
        args: str = "",
        wrap: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        stdout: int = subprocess.PIPE,
    ) -> subprocess.Popen[bytes]:
        """Start the plugin; an empty value in ``env`` removes the variable."""
        environment = self.environment(command, pod, ifname, container, args) | (env or {})
        process = subprocess.Popen(
            [*wrap, *self.command()],
            env={key: value for key, value in environment.items() if value},
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=subprocess.PIPE,
        )
        assert process.stdin
        try:
            process.stdin.write(conf if isinstance(conf, bytes) else json.dumps(conf).encode())
            process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended without reading
        process.stdin = None
        return process

    def finish(self, process: subprocess.Popen[bytes]) -> Outcome:
        """Wait for the end of an execution."""
        out, err = process.communicate(timeout=self.time_limit)
        return Outcome(process.returncode, out or b"", err)

    def run(self, command: str, conf: Conf, pod: str = "", **more: Any) -> Outcome:
        """Execute the plugin."""
        return self.finish(self.start(command, conf, pod, **more))

    def add(self, conf: dict[str, Any], pod: str, **more: Any) -> Any:
        """Attach a pod by an ADD, which must succeed; return the result."""
        done = self.run("ADD", conf, pod, **more)
        assert done.status == 0, done
        return done.json

    def delete(self, conf: dict[str, Any], pod: str, **more: Any) -> Outcome:
        """Detach a pod by a DEL, which must succeed and print nothing."""
        done = self.run("DEL", conf, pod, **more)
        assert done.status == 0, done
        assert done.stdout == b"", done
        return done

    def check(self, conf: dict[str, Any], pod: str, result: Any, **more: Any) -> None:
        """Execute CHECK, which must succeed, with the result of the ADD."""
        done = self.run("CHECK", conf | {"prevResult": result}, pod, **more)
        assert (done.status, done.stdout) == (0, b""), done

    def collect(self, conf: dict[str, Any], *valid: str, **more: Any) -> None:
        """Execute GC for the network of a configuration; the pods in ``valid`` keep their interface eth0."""
        kept = [{"containerID": container, "ifname": "eth0"} for container in valid]
        done = self.run("GC", conf | {"cniVersion": "1.1.0", "cni.dev/valid-attachments": kept}, **more)
        assert done.status == 0, done

    def refused(self, code: int, command: str, conf: Conf, pod: str = "", **more: Any) -> str:
        """Execute the plugin, which must print one CNI error of that code; return msg and details."""
        done = self.run(command, conf, pod, **more)
        assert done.status == 1, done
        assert done.json["code"] == code, done
        assert {"cniVersion", "code", "msg"} <= set(done.json) <= {"cniVersion", "code", "msg", "details"}
        return f"{done.json['msg']}\n{done.json.get('details', '')}"

    # --- the plugin's directory

    def touched(self) -> list[str]:
        """Return the names of the files in the plugin's directory."""
        return sorted(os.listdir(self.run_dir)) if self.run_dir.exists() else []

    def records(self) -> list[str]:
        """Return the names of the journal's records."""
        directory = self.run_dir / "vfs"
        return sorted(name for name in os.listdir(directory) if name[0] != ".") if directory.exists() else []

    def drafts(self) -> list[str]:
        """Return the names of drafts that did not become records."""
        return sorted(path.name for path in self.run_dir.glob("vfs/.*"))

    def record(self) -> Path:
        """Return the journal's only record."""
        (name,) = self.records()
        return self.run_dir / "vfs" / name

    def locks(self) -> list[str]:
        """Return the names of the lock files."""
        directory = self.run_dir / "locks"
        return sorted(os.listdir(directory)) if directory.exists() else []

    def close(self) -> None:
        """Remove the pods."""
        for name in self.pods:
            pods.try_ip("netns", "del", name)
