"""netdevsim, the kernel's simulated network card, with the faults of ``lab/netdevsim_faults.h``."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.card import IN_LAB

BUS = Path("/sys/bus/netdevsim")
DEBUG = Path("/sys/kernel/debug/netdevsim")
PARAMETERS = Path("/sys/module/netdevsim/parameters")
MODULES = ("psample", "udp_tunnel", "macsec", "netdevsim")


@contextmanager
def simulated(number: int, vfs: int, enter: Sequence[str] = ()) -> Iterator[str]:
    """Make a PF with VFs; yield its parent device. The command prefix ``enter`` selects the namespace."""
    if not IN_LAB:
        pytest.skip("makes a simulated network card: only in the lab")
    for module in MODULES:
        done = subprocess.run(["modprobe", module], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"needs the kernel module {module}: {done.stderr.strip()}")
    name = f"netdevsim{number}"
    subprocess.run([*enter, "sh", "-c", f"echo {number} 1 >{BUS}/new_device"], check=True)
    try:
        (DEBUG / name / "max_vfs").write_text(str(vfs))
        (BUS / "devices" / name / "sriov_numvfs").write_text(str(vfs))
        yield name
    finally:
        (BUS / "del_device").write_text(str(number))


def delay_settings(milliseconds: int) -> None:
    """Let a changed VF show its old settings for some time."""
    (PARAMETERS / "late_ms").write_text(str(milliseconds))
