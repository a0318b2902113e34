"""containerd inside the guest, for tests that want a real runtime to execute the plugin.

Everything lives below one directory on tmpfs, and no registry is asked for anything. ``ctr run --cni`` takes
the network from the first configuration in ``/etc/cni/net.d`` and plugins from ``/opt/cni/bin``. A sandbox of
the CRI (``Cri``, ``cri.py``) has the network of its runtime handler.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lab import image
from lab.errors import LabError

IMAGE = "lab.local/busybox:1"
PAUSE_IMAGE = "lab.local/pause:1"
NETWORKS = Path("/etc/cni/net.d")
TOP = Path("/run/lab-containerd")
SECONDS_TO_START = 240.0  # an emulated guest on a busy machine needs more than a minute

# The plugins that ask for devices, registries or time that the lab does not have.
_DISABLED = ("snapshotter.v1.btrfs", "snapshotter.v1.zfs", "snapshotter.v1.devmapper")
_CRI = "io.containerd.grpc.v1.cri"


@dataclass(frozen=True, slots=True)
class Cri:
    """What the CRI needs: a network for each runtime handler, and the directory of plugins."""

    networks: Mapping[str, Mapping[str, object]]
    plugins: Path = Path("/opt/cni/bin")


@dataclass(slots=True)
class Containerd:
    """A running containerd; ``env`` is added to the environment of the CNI plugins."""

    top: Path
    env: Mapping[str, str]
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.launch()

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.top / "containerd.sock"

    @property
    def log(self) -> Path:
        """What it said."""
        return self.top / "containerd.log"

    def ctr(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ``ctr``; with ``check``, raise with its words and containerd's last ones when it fails."""
        command = ["ctr", "--address", str(self.socket), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if check and done.returncode:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-10:])
            said = f"{done.stdout}{done.stderr}\n{tail}"
            raise LabError(f"ctr {' '.join(words)} failed ({done.returncode}): {said}")
        return done

    def run(self, name: str, argv: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ``argv`` in a new container with a network; it and its network are gone when ``argv`` ends."""
        return self.ctr(*_RUN, "--rm", IMAGE, name, *argv, check=check)

    def start(self, name: str, argv: Sequence[str] = ("sleep", "1000")) -> int:
        """Start a container with a network in the background; returns the process id of its first process."""
        self.ctr(*_RUN, "--detach", IMAGE, name, *argv)
        for line in self.ctr("tasks", "list").stdout.splitlines():
            words = line.split()
            if words[:1] == [name]:
                return int(words[1])
        raise LabError(f"container {name} is not running")

    def exec(self, name: str, argv: Sequence[str]) -> str:
        """Run ``argv`` in a running container and return what it printed."""
        return self.ctr("tasks", "exec", "--exec-id", f"exec-{time.monotonic_ns()}", name, *argv).stdout

    def remove(self, name: str) -> None:
        """End a container that ``start`` started; deleting its task takes its network down (CNI DEL)."""
        self.ctr("tasks", "kill", "--signal", "SIGKILL", name, check=False)
        self.ctr("tasks", "delete", "--force", name, check=False)
        self.ctr("containers", "delete", name, check=False)

    def launch(self) -> None:
        """Start containerd, and wait until it answers; its containers have gone on meanwhile."""
        command = ["containerd", "--config", str(self.top / "config.toml")]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | self.env
            )
        deadline = time.monotonic() + SECONDS_TO_START
        while self.ctr("version", check=False).returncode:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise LabError(f"containerd does not answer:\n{self.log.read_text(errors='replace')}")
            time.sleep(0.2)

    def stop(self) -> None:
        """End containerd, not its containers."""
        self.process.terminate()
        self.process.wait()


_RUN = ("run", "--cni", "--snapshotter", "native")
_IMPORT = ("images", "import", "--snapshotter", "native")


def start(top: Path = TOP, cri: Cri | None = None, env: Mapping[str, str] | None = None) -> Containerd:
    """Start containerd with the images in it; ``env`` is added to the environment of the CNI plugins."""
    top.mkdir(parents=True, exist_ok=True)
    for name, conf in (cri.networks if cri else {}).items():
        network(conf, _network_directory(top, name))
    (top / "config.toml").write_text(config(top, cri))
    running = Containerd(top, dict(env or {}))
    try:
        if cri:
            image.build_pause(top / "pause")
            image.write(top / "image.tar", PAUSE_IMAGE, top / "pause", links=(), argv=("/bin/pause",))
            running.ctr("-n", "k8s.io", *_IMPORT, str(top / "image.tar"))
        else:
            image.write(top / "image.tar", IMAGE)
            running.ctr(*_IMPORT, str(top / "image.tar"))
    except BaseException:
        running.stop()
        raise
    return running


@contextmanager
def running(
    top: Path = TOP, cri: Cri | None = None, env: Mapping[str, str] | None = None
) -> Iterator[Containerd]:
    """Run containerd for the length of a ``with`` block."""
    process = start(top, cri, env)
    try:
        yield process
    finally:
        process.stop()
        shutil.rmtree(top, ignore_errors=True)


def config(top: Path, cri: Cri | None = None) -> str:
    """Return containerd's configuration; without ``cri`` it serves ``ctr`` alone."""
    disabled = [f"io.containerd.{name}" for name in _DISABLED] + ([] if cri else [_CRI])
    lines = [
        "version = 2",
        f'root = "{top}/root"',
        f'state = "{top}/state"',
        f"disabled_plugins = {json.dumps(disabled)}",
        "[grpc]",
        f'address = "{top}/containerd.sock"',
    ]
    return "\n".join([*lines, *(_cri_config(top, cri) if cri else ()), ""])


def _cri_config(top: Path, cri: Cri) -> Iterator[str]:
    section = f'plugins."{_CRI}"'
    yield f"[{section}]"
    yield f'sandbox_image = "{PAUSE_IMAGE}"'
    yield "disable_apparmor = true"
    yield "restrict_oom_score_adj = true"
    yield f"[{section}.cni]"
    yield f'bin_dir = "{cri.plugins}"'
    yield f'conf_dir = "{_network_directory(top, next(iter(cri.networks)))}"'
    yield f"[{section}.containerd]"
    yield 'snapshotter = "native"'
    yield f'default_runtime_name = "{next(iter(cri.networks))}"'
    for name in cri.networks:
        yield f"[{section}.containerd.runtimes.{name}]"
        yield 'runtime_type = "io.containerd.runc.v2"'
        yield f'cni_conf_dir = "{_network_directory(top, name)}"'


def _network_directory(top: Path, handler: str) -> Path:
    return top / "net.d" / handler


def network(conf: Mapping[str, object], directory: Path = NETWORKS) -> Path:
    """Make ``conf`` (one plugin's configuration or a list) the only network that containerd sees."""
    directory.mkdir(parents=True, exist_ok=True)
    for other in directory.iterdir():
        other.unlink()
    path = directory / ("10-lab.conflist" if "plugins" in conf else "10-lab.conf")
    path.write_text(json.dumps(conf))
    return path
