"""A job: the directory that one run of the guest shares with the host."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import initramfs
from lab.qemu import Machine

PIPES = ("out", "err", "control")
MAIN = "main.sh"


@dataclass(frozen=True, slots=True)
class Job:
    """Paths of the directory on the host."""

    top: Path

    @property
    def sources(self) -> Path:
        """The checkout's files, /opt/src in the guest."""
        return self.top / "src"

    @property
    def output(self) -> Path:
        """The directory for files of the command, $SRIOV_FAST_OUT in the guest."""
        return self.top / "out"

    @property
    def log(self) -> Path:
        """The output of QEMU and its helpers."""
        return self.top / "qemu.log"

    @property
    def console(self) -> Path:
        """The output of the guest's console."""
        return self.top / "console.log"

    def pipe(self, name: str) -> Path:
        """Return the path of a pipe that QEMU writes to."""
        return self.top / f"{name}.pipe"


def fill(job: Job, machine: Machine, root: Path, version: str) -> None:
    """Make everything except the command: scripts, initial file system, pipes, directories."""
    job.output.mkdir()
    job.sources.mkdir()
    for name in PIPES:
        os.mkfifo(job.pipe(name))
    shutil.copyfile(initramfs.SCRIPTS / MAIN, job.top / MAIN)
    (job.top / "settings").write_text(settings(machine))
    (job.top / "initramfs").write_bytes(initramfs.build(root, version))


def settings(machine: Machine) -> str:
    """Return the settings of the guest's script as shell variables."""
    lines = [f"LAB_PFS={machine.pfs}", f"LAB_VFS={machine.vfs}"]
    if machine.terminal:
        columns, rows = shutil.get_terminal_size()
        lines.append(f"LAB_TERMINAL='rows {rows} cols {columns}'")
        lines.append(f"TERM={shlex.quote(os.environ.get('TERM', 'linux'))}")
    return "\n".join([*lines, ""])


def command_script(argv: Sequence[str], env: Mapping[str, str]) -> str:
    """Return the shell script that runs the user's command in the guest."""
    exports = [f"export {name}={shlex.quote(value)}" for name, value in sorted(env.items())]
    return "\n".join([*exports, f"exec {shlex.join(argv)}", ""])
