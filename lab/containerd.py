"""containerd inside the guest, for tests that want a real runtime to execute the plugin.

Everything lives below one directory on tmpfs, and no registry is asked for anything. A sandbox of the CRI
(``Cri``, ``cri.py``) has the network of its runtime handler.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lab import image
from lab.errors import LabError

PAUSE_IMAGE = "lab.local/pause:1"
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


def start(top: Path, cri: Cri, env: Mapping[str, str] | None = None) -> Containerd:
    """Start containerd with the image of a sandbox; ``env`` is added to the environment of CNI plugins."""
    top.mkdir(parents=True, exist_ok=True)
    for name, conf in cri.networks.items():
        _write_network(conf, _network_directory(top, name))
    (top / "config.toml").write_text(config(top, cri))
    running = Containerd(top, dict(env or {}))
    try:
        image.build_pause(top / "pause")
        image.write(top / "image.tar", PAUSE_IMAGE, top / "pause")
        words = ("-n", "k8s.io", "images", "import", "--snapshotter", "native")
        running.ctr(*words, str(top / "image.tar"))
    except BaseException:
        running.stop()
        raise
    return running


@contextmanager
def running(top: Path, cri: Cri, env: Mapping[str, str] | None = None) -> Iterator[Containerd]:
    """Run containerd for the length of a ``with`` block."""
    process = start(top, cri, env)
    try:
        yield process
    finally:
        process.stop()
        shutil.rmtree(top, ignore_errors=True)


def config(top: Path, cri: Cri) -> str:
    """Return containerd's configuration."""
    return "\n".join([*_config(top, cri), ""])


def _config(top: Path, cri: Cri) -> Iterator[str]:
    yield "version = 2"
    yield f'root = "{top}/root"'
    yield f'state = "{top}/state"'
    yield f"disabled_plugins = {json.dumps([f'io.containerd.{name}' for name in _DISABLED])}"
    yield "[grpc]"
    yield f'address = "{top}/containerd.sock"'
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
    yield '[[plugins."io.containerd.transfer.v1.local".unpack_config]]'  # containerd 2 imports images with it
    yield 'platform = "linux/amd64"'
    yield 'snapshotter = "native"'
    for name in cri.networks:
        yield f"[{section}.containerd.runtimes.{name}]"
        yield 'runtime_type = "io.containerd.runc.v2"'
        yield f'cni_conf_dir = "{_network_directory(top, name)}"'


def _network_directory(top: Path, handler: str) -> Path:
    return top / "net.d" / handler


def _write_network(conf: Mapping[str, object], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "10-lab.conflist").write_text(json.dumps(conf))
