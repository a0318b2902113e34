"""Build of ``netdevsim``, the kernel's simulated network card: Debian ships only its source.

It has features that ``igb`` lacks: VF link state, rates, 802.1ad, trust, hundreds of VFs (without netdevs).
``netdevsim_faults.h`` adds a driver that is busy or late, and packet counters of VFs.
"""

from __future__ import annotations

import re
import shutil
import tarfile
from pathlib import Path

from lab.chroot import Chroot
from lab.errors import LabError
from lab.progress import step

FOLDER = "drivers/net/netdevsim/"
FAULTS = Path(__file__).with_name("netdevsim_faults.h")
_TABLE = "static const struct net_device_ops nsim_netdev_ops = {\n"
_OPERATION = re.compile(r"(\.ndo_[gs]et_vf_(?:mac|vlan|rate|spoofchk|trust|link_state|config)\s*= )nsim_")


def install(chroot: Chroot) -> None:
    """Build the module for the tree's kernel, install it, and delete the kernel's source."""
    root = chroot.root
    archive = _archive(root)
    work = root / "usr/src/netdevsim"
    with step("  building netdevsim"):
        extract(archive, work)
        add_faults(work)
        version = next((root / "usr/lib/modules").iterdir()).name
        settings = ("M=/usr/src/netdevsim", "CONFIG_NETDEVSIM=m", "CONFIG_INET=y")
        chroot.run(["make", "-s", "-C", f"/lib/modules/{version}/build", *settings, "modules"])
        target = root / "usr/lib/modules" / version / "updates"
        target.mkdir(exist_ok=True)
        shutil.copy(work / "netdevsim.ko", target)
        chroot.run(["depmod", version])
    shutil.rmtree(work)
    archive.unlink()


def extract(archive: Path, target: Path) -> None:
    """Unpack only netdevsim from the kernel's source; stop reading after it."""
    target.mkdir(parents=True, exist_ok=True)
    found = False
    with tarfile.open(archive, "r|xz") as tar:
        for member in tar:
            inside = FOLDER in member.name
            if inside and member.isfile():
                _write(tar, member, target / member.name.partition(FOLDER)[2])
            elif found and not inside:
                break
            found = found or inside
    if not found:
        raise LabError(f"{archive} holds no {FOLDER}")


def add_faults(source: Path) -> None:
    """Replace the PF's operations on VFs by those of ``netdevsim_faults.h``."""
    path = source / "netdev.c"
    before, table, operations = path.read_text().partition(_TABLE)
    operations, wrapped = _OPERATION.subn(r"\1faulty_", operations)
    if not table or wrapped != 7:
        raise LabError(f"{path} is not the netdevsim that netdevsim_faults.h is for")
    added = "\t.ndo_get_vf_stats\t= faulty_get_vf_stats,\n"
    path.write_text(f'{before}#include "{FAULTS.name}"\n\n{table}{added}{operations}')
    shutil.copy(FAULTS, source)


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if source := tar.extractfile(member):
        path.write_bytes(source.read())


def _archive(root: Path) -> Path:
    archives = sorted((root / "usr/src").glob("linux-source-*.tar.xz"))
    if not archives:
        raise LabError("the package linux-source left no archive in the guest's tree")
    return archives[-1]
