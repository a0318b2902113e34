"""containerd inside the guest, for tests that need a real runtime to execute the plugin.

All files are below one directory on tmpfs, and no registry is used. A sandbox of the CRI (``Cri``,
``cri.py``) has the network of its runtime handler.
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

# The disabled plugins need devices that the lab does not have. containerd 2 imports images through the plugin
# "transfer".
_CONFIG = """\
version = 2
root = "{top}/root"
state = "{top}/state"
disabled_plugins = [
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper",
]
[grpc]
address = "{top}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image}"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{top}/net.d/{default}"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
default_runtime_name = "{default}"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/amd64"
snapshotter = "native"
"""
_RUNTIME = """\
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{handler}]
runtime_type = "io.containerd.runc.v2"
cni_conf_dir = "{top}/net.d/{handler}"
"""


@dataclass(frozen=True, slots=True)
class Cri:
    """Settings of the CRI: a network for each runtime handler, and the directory of plugins."""

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
        """The path of the socket."""
        return self.top / "containerd.sock"

    @property
    def log(self) -> Path:
        """The path of the log."""
        return self.top / "containerd.log"

    def ctr(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ``ctr``; with ``check``, raise LabError with its output and the end of the log if it fails."""
        command = ["ctr", "--address", str(self.socket), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if check and done.returncode:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-10:])
            said = f"{done.stdout}{done.stderr}\n{tail}"
            raise LabError(f"ctr {' '.join(words)} failed ({done.returncode}): {said}")
        return done

    def launch(self) -> None:
        """Start containerd and wait until it answers; containers of an earlier process keep running."""
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
        """Stop containerd; its containers keep running."""
        self.process.terminate()
        self.process.wait()


@contextmanager
def running(top: Path, cri: Cri, env: Mapping[str, str] | None = None) -> Iterator[Containerd]:
    """Run containerd with the image of a sandbox; ``env`` is added to the environment of CNI plugins."""
    for handler, conf in cri.networks.items():
        directory = top / "net.d" / handler
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "10-lab.conflist").write_text(json.dumps(conf))
    (top / "config.toml").write_text(config(top, cri))
    process = Containerd(top, dict(env or {}))
    try:
        image.build_pause(top / "pause")
        image.write(top / "image.tar", PAUSE_IMAGE, top / "pause")
        words = ("-n", "k8s.io", "images", "import", "--snapshotter", "native")
        process.ctr(*words, str(top / "image.tar"))
        yield process
    finally:
        process.stop()
        shutil.rmtree(top, ignore_errors=True)


def config(top: Path, cri: Cri) -> str:
    """Return containerd's configuration; the first network is the default runtime's."""
    default = next(iter(cri.networks))
    runtimes = [_RUNTIME.format(top=top, handler=handler) for handler in cri.networks]
    return "".join(
        [_CONFIG.format(top=top, image=PAUSE_IMAGE, plugins=cri.plugins, default=default), *runtimes]
    )
