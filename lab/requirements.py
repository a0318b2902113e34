"""The lab's requirements of the host, and remedies for missing ones."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from lab import apt
from lab.errors import MISSING, LabError

GIBIBYTE = 1 << 30
DISK_TO_BUILD = 4 * GIBIBYTE
DISK_TO_RUN = GIBIBYTE // 2

TOOLS_TO_RUN = {"unshare": "util-linux", "setpriv": "util-linux", "mount": "mount", "chroot": "coreutils"}
TOOLS_TO_BUILD = {"mmdebstrap": "mmdebstrap", "apt-config": "apt", **TOOLS_TO_RUN}


@dataclass(frozen=True, slots=True)
class Lack:
    """A missing requirement and its remedy."""

    what: str
    remedy: str


def missing(building: bool, cache: Path) -> list[Lack]:
    """Return the missing requirements to build the guest, or only to run it."""
    lacks = [*_machine(), *_tools(TOOLS_TO_BUILD if building else TOOLS_TO_RUN)]
    if building and apt.keyring() is None:
        lacks.append(Lack("the Debian archive's keys", "apt-get install debian-archive-keyring"))
    lacks += _disk(DISK_TO_BUILD if building else DISK_TO_RUN, cache)
    return lacks


def _machine() -> list[Lack]:
    lacks = []
    if platform.machine() != "x86_64":
        lacks.append(Lack("an x86-64 host", "the lab's guest runs on x86-64 Linux only"))
    if os.geteuid() != 0:
        lacks.append(Lack("root", "run it as root, for example with sudo"))
    return lacks


def _tools(tools: dict[str, str]) -> list[Lack]:
    return [
        Lack(f"the program {tool}", f"apt-get install {package}")
        for tool, package in tools.items()
        if shutil.which(tool, path=search_path()) is None
    ]


def search_path() -> str:
    """Return the caller's PATH with the system's directories, which a plain ``su`` leaves out."""
    return os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"


def _disk(needed: int, cache: Path) -> list[Lack]:
    directory = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(directory).free
    if free >= needed:
        return []
    what = f"disk space: {free / GIBIBYTE:.1f} GiB free in {directory}, {needed / GIBIBYTE:.1f} GiB needed"
    return [Lack(what, "free some, or set SRIOV_FAST_LAB_DIR to a larger file system")]


def explain(lacks: list[Lack]) -> str:
    """Return one message for all missing requirements, with one install command for all packages."""
    lines = ["the lab cannot run on this host yet; missing:"]
    lines += [f"  - {lack.what}: {lack.remedy}" for lack in lacks]
    packages = sorted({lack.remedy.split()[-1] for lack in lacks if lack.remedy.startswith("apt-get ")})
    if len(packages) > 1:
        lines.append(f"all packages at once: apt-get install {' '.join(packages)}")
    return "\n".join(lines)


def require(building: bool, cache: Path) -> None:
    """Raise LabError with the whole list if a requirement is missing."""
    lacks = missing(building, cache)
    if lacks:
        raise LabError(explain(lacks), MISSING)
