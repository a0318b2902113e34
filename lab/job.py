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
    """The host's side of the directory."""

    top: Path

    @property
    def sources(self) -> Path:
        """The checkout's files, /opt/src in the guest."""
        return self.top / "src"

    @property
    def output(self) -> Path:
        """What the command leaves for the host, $SRIOV_FAST_OUT in the guest."""
        return self.top / "out"

    @property
    def log(self) -> Path:
        """What QEMU and its helpers said."""
        return self.top / "qemu.log"

    @property
    def console(self) -> Path:
        """The guest's console."""
        return self.top / "console.log"

    def pipe(self, name: str) -> Path:
        """One of the pipes that QEMU writes to."""
        return self.top / f"{name}.pipe"


def fill(job: Job, machine: Machine, root: Path, version: str) -> None:
    """Everything but the command: scripts, initial file system, pipes, directories."""
    job.output.mkdir()
    job.sources.mkdir()
    for name in PIPES:
        os.mkfifo(job.pipe(name))
    shutil.copyfile(initramfs.SCRIPTS / MAIN, job.top / MAIN)
    (job.top / "settings").write_text(settings(machine))
    (job.top / "initramfs").write_bytes(initramfs.build(root, version))


def settings(machine: Machine) -> str:
    """Say what the guest's script wants to know, as shell variables."""
    lines = [f"LAB_PFS={machine.pfs}", f"LAB_VFS={machine.vfs}"]
    if machine.terminal:
        columns, rows = shutil.get_terminal_size()
        lines.append(f"LAB_TERMINAL='rows {rows} cols {columns}'")
        lines.append(f"TERM={shlex.quote(os.environ.get('TERM', 'linux'))}")
    return "\n".join([*lines, ""])


def command_script(argv: Sequence[str], env: Mapping[str, str]) -> str:
    """Write the shell script that runs the user's command in the guest."""
    exports = [f"export {name}={shlex.quote(value)}" for name, value in sorted(env.items())]
    return "\n".join([*exports, f"exec {shlex.join(argv)}", ""])
