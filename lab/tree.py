"""The guest's tree: built once, kept in the cache, not changed afterwards."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import apt, netdevsim, requirements
from lab.chroot import HOST, ISOLATE, Chroot
from lab.errors import LabError
from lab.paths import Place, base
from lab.progress import say, step
from lab.recipe import Recipe, key

# Paths in the tree for content that changes from run to run.
PROJECT = "/opt/sriov-fast"
PLUGINS = "/opt/cni/bin"
SOURCES = "/opt/src"
JOB = "/mnt/job"
BUILD = "/mnt/build"
TOOLS = "/mnt/build/tools"
CACHE = "/mnt/pip-cache"
DEBIAN_PLUGINS = "/usr/lib/cni"

_FILES = {"resolv.conf": "", "hosts": "127.0.0.1 localhost\n::1 localhost\n", "hostname": "lab\n"}
_MOUNT_POINTS = (PROJECT, PLUGINS, SOURCES, JOB, BUILD, CACHE, HOST, "/etc/cni/net.d", "/var/lib/cni")


def place() -> Place:
    """Return the directories of the guest's tree, which may not exist yet."""
    return Place(base() / key(Recipe()))


def ensure() -> Place:
    """Return the directories of the guest's tree; build it if it does not exist."""
    where = place()
    if not where.root.is_dir():
        requirements.require(building=True, cache=base())
        with locked(base() / f"{where.top.name}.lock"):
            if not where.root.is_dir():
                _build(where)
    return where


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path``; print a message if another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another lab command that holds {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(where: Place) -> None:
    recipe = Recipe()
    unfinished = where.top.with_name(f"{where.top.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    root = Place(unfinished).root
    root.mkdir(parents=True)
    with step(f"building the guest (Debian {recipe.suite}) in {where.top}; once, 2 to 4 minutes"):
        _bootstrap(recipe, root, unfinished / "build.log")
        _furnish(root)
        netdevsim.install(Chroot(root))
    shutil.rmtree(where.top, ignore_errors=True)
    unfinished.rename(where.top)


def bootstrap_command(
    recipe: Recipe, root: Path, mirror: str, keyring: Path | None, options: list[str]
) -> list[str]:
    """Return the ``mmdebstrap`` call for ``recipe``."""
    components = " ".join(recipe.components)
    return [
        *("mmdebstrap", "--mode=root", "--variant=apt", f"--include={','.join(recipe.packages)}"),
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in recipe.excluded),
        *(f"--aptopt={option}" for option in options),
        *([f"--keyring={keyring}"] if keyring else []),
        *(recipe.suite, str(root), f"deb {mirror} {recipe.suite} {components}"),
    ]


def _bootstrap(recipe: Recipe, root: Path, log: Path) -> None:
    mirror = apt.mirror(apt.host_sources())
    command = [*ISOLATE, *bootstrap_command(recipe, root, mirror, apt.keyring(), apt.options())]
    env = {**os.environ, "PATH": requirements.search_path()}
    with subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        output = list(_progress(process.stderr or (), log))
    if process.returncode:
        hint = "\n(is the package debian-archive-keyring recent?)" if "NO_PUBKEY" in "".join(output) else ""
        raise LabError(f"mmdebstrap failed, its output is in {log}:\n{''.join(output[-15:])}{hint}")


def _progress(lines: Iterable[str], log: Path) -> Iterator[str]:
    with log.open("w") as file:
        for line in lines:
            file.write(line)
            if line.startswith("I: "):
                say(f"  {line[3:].strip()}")
            yield line


def _furnish(root: Path) -> None:
    """Make mount points and configuration files; delete apt's archives."""
    for target in _MOUNT_POINTS:
        (root / target.lstrip("/")).mkdir(parents=True, exist_ok=True)
    for name, text in _FILES.items():
        path = root / "etc" / name
        path.unlink(missing_ok=True)
        path.write_text(text)
    shutil.rmtree(root / "var/cache/apt/archives", ignore_errors=True)


def kernel_version(root: Path) -> str:
    """Return the version of the guest's kernel."""
    versions = sorted(os.listdir(root / "usr/lib/modules"))
    if not versions:
        raise LabError(f"there is no kernel in {root}")
    return versions[-1]


def package_version(root: Path, package: str) -> str:
    """Return the upstream version of a package from the tree's dpkg database."""
    status = (root / "var/lib/dpkg/status").read_text(errors="replace")
    _, found, stanza = status.partition(f"Package: {package}\n")
    version = stanza.partition("\nVersion: ")[2].partition("\n")[0] if found else ""
    return version.partition(":")[2].partition("+")[0].partition("-")[0] or version or "unknown"
