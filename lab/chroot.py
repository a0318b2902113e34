"""Run a program natively inside the guest's tree.

The program has its own mount namespace and PID namespace. When the program ends, or the lab is killed, the
kernel removes every mount and ends every process.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab.errors import LabError

HOST = "/mnt/host"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

ISOLATE = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--propagation", "private"),
)


@dataclass(frozen=True, slots=True)
class Chroot:
    """A tree, and the paths that are bound into it while a program runs there."""

    root: Path
    binds: tuple[tuple[Path, str], ...] = ()
    host: bool = False
    env: Mapping[str, str] = field(default_factory=dict)

    def command(self, argv: Sequence[str], prepare: Sequence[str] = (), cwd: str = "/") -> list[str]:
        """Return the host's command that runs ``argv`` in the tree, after the shell lines ``prepare``."""
        inside = f'cd {shlex.quote(cwd)} && exec "$@"'
        script = [*self._mounts(), *prepare]
        shell = shlex.join(("/bin/sh", "-c", inside, "sh", *argv))
        script.append(f"exec chroot {_quote(self.root)} {shell}")
        return [*ISOLATE, "sh", "-ec", "\n".join(script)]

    def environment(self) -> dict[str, str]:
        """Return a minimal environment with the variables of ``env``."""
        return {"PATH": PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", **self.env}

    def run(self, argv: Sequence[str], *, cwd: str = "/", capture: bool = True) -> str:
        """Run ``argv`` in the tree and return its output; raise LabError with the output if it fails."""
        done = subprocess.run(
            self.command(argv, cwd=cwd),
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if capture else None,
            stderr=subprocess.STDOUT if capture else None,
            text=True,
            check=False,
        )
        if done.returncode:
            failure = f"in the guest's tree, {shlex.join(argv)} failed ({done.returncode})"
            raise LabError(f"{failure}\n{done.stdout or ''}")
        return done.stdout or ""

    def succeeds(self, argv: Sequence[str]) -> bool:
        """Return whether ``argv`` succeeds in the tree."""
        try:
            self.run(argv)
        except LabError:
            return False
        return True

    def _mounts(self) -> list[str]:
        root = self.root
        lines = [
            f"mount --rbind /dev {_quote(root / 'dev')}",
            f"mount -t proc proc {_quote(root / 'proc')}",
            f"mount -t tmpfs tmpfs {_quote(root / 'run')}",
            f"mount -t tmpfs tmpfs {_quote(root / 'tmp')}",
        ]
        for name in ("resolv.conf", "hosts"):
            if os.path.exists(f"/etc/{name}"):
                lines.append(f"mount --bind /etc/{name} {_quote(root / 'etc' / name)}")
        if self.host:
            lines.append(f"mount --rbind / {_quote(root)}{HOST}")
        lines += [f"mount --bind {_quote(source)} {_quote(root)}{target}" for source, target in self.binds]
        return lines


def _quote(path: Path) -> str:
    return shlex.quote(str(path))
