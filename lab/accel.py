"""Detection of a usable KVM on the host.

Some hosts offer ``/dev/kvm``, create a machine on request, and then cannot execute ordinary code in it.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from lab import qemu, tree
from lab.chroot import Chroot
from lab.paths import Place
from lab.progress import say

SECONDS = 8.0


def choose(place: Place, device: Path = Path("/dev/kvm")) -> str:
    """Return ``kvm`` if it works, else ``tcg``; the result is kept until the host reboots."""
    if not device.exists():
        return "tcg"
    note = place.top / "accel"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    known = note.read_text().split() if note.exists() else []
    if known[:1] != [boot]:
        known = [boot, "kvm" if _works(place) else "tcg"]
        note.write_text(" ".join(known))
    return known[1]


def _works(place: Place) -> bool:
    """Return whether the guest's kernel runs in KVM.

    It has no root file system, so with a usable KVM it panics, and QEMU ends within a second.
    """
    say("trying the host's KVM (once until the host reboots) ...")
    argv = [
        *(qemu.PROGRAM, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "512"),
        *("-kernel", f"/boot/vmlinuz-{tree.kernel_version(place.root)}", "-append", "panic=-1 quiet"),
    ]
    chroot = Chroot(place.root)
    try:
        done = subprocess.run(
            chroot.command(argv),
            env=chroot.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
