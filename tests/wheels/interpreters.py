"""The interpreters for the tests of the wheels: this machine's, and others in trees of Debian's packages.

The cache keeps each tree. CPython for musl is compiled in its tree from Debian's sources. A cross compiler
compiles it for the other processor. QEMU executes the interpreters for the other processor.
"""

from __future__ import annotations

import os
import platform
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from lab import apt, paths, tree
from lab.chroot import Chroot
from lab.recipe import Recipe, key

VERSIONS = ("3.11", "3.12", "3.13", "3.14")
# Debian's suite for a version that this machine does not have; no suite has 3.12.
SUITES = {"3.11": "bookworm", "3.13": "trixie", "3.14": "sid"}
LIBFFI = ("automake", "libtool", "libltdl-dev")
BUILD = ("gcc", "libc6-dev", "make", "musl-tools", "dpkg-dev", "xz-utils", "iproute2", *LIBFFI)
MACHINE = platform.machine()
OTHER = "aarch64"
QEMU = f"qemu-{OTHER}-static"
CROSS = ("python3", "gcc-aarch64-linux-gnu")
# The trees for compiling CPython for musl, by target processor.
MUSL = {MACHINE: Recipe(packages=BUILD), OTHER: Recipe(packages=(*BUILD, *CROSS))}
MUSL_VERSION = "3.13"
MUSL_PYTHON = "/opt/python/bin/python3"  # where musl.sh installs it
HERE = Path(__file__).resolve().parent


class Interpreter(NamedTuple):
    """A CPython: its version, its path in the tree and the platform tag of its wheels.

    ``tree`` is None for an interpreter of this machine.
    """

    version: str
    python: str
    tag: str
    tree: Path | None = None

    def command(self, directory: Path, *words: object) -> list[str]:
        """Return the command that executes a program in a directory, which is bind-mounted in the tree."""
        argv = [str(word) for word in words]
        if not self.tree:
            return ["env", "-C", str(directory), *argv]
        inside = f"{self.tree}{directory}"
        # ip-netns(8) requires a root directory that is a mount point.
        bind = (f"mount --bind {directory} {inside}", f"mount --rbind {self.tree} {self.tree}")
        prepare = (f"mkdir -p {inside}", *bind)
        # The first process inherits all orphans, and the tests must not find them among their own children.
        first = ["sh", "-c", '"$@"; exit $?', "sh"]
        chroot = Chroot(self.tree, binds=((Path("/sys"), "/sys"),))
        return chroot.command([*first, *argv], prepare, cwd=str(directory))


class Emulated(NamedTuple):
    """A CPython for the other processor, in a new tree with QEMU; the fields are those of ``Interpreter``."""

    version: str
    python: str
    tag: str
    root: Path

    def command(self, *words: object) -> list[str]:
        """Return the command that executes Python with the packages in /opt/site."""
        emulator = (f"/{QEMU}", "-E", "PYTHONPATH=/opt/site")
        return ["chroot", str(self.root), *emulator, self.python, *map(str, words)]


def glibc(version: str) -> Interpreter:
    """Return an interpreter for glibc: this machine's, or one from Debian's suite with this version."""
    tag = f"manylinux_2_17_{MACHINE}"
    if found := local(version):
        return Interpreter(version, found, tag)
    assert version in SUITES, f"no python{version} here, and none in Debian; SRIOV_FAST_PYTHONS may name one"
    recipe = Recipe(suite=SUITES[version], packages=(f"python{version}-venv", "iproute2"))
    return Interpreter(version, f"/usr/bin/python{version}", tag, ensure(recipe))


def musl() -> Interpreter:
    """Return an interpreter for musl."""
    return Interpreter(MUSL_VERSION, MUSL_PYTHON, f"musllinux_1_2_{MACHINE}", ensure(MUSL[MACHINE]))


def emulated_glibc(root: Path) -> Emulated:
    """Make a tree with Debian's CPython for the other processor."""
    options = ("-q", "--variant=extract", "--architectures=arm64", "--include=python3")
    subprocess.run(["mmdebstrap", *options, "bookworm", root], check=True, capture_output=True)
    copy_qemu(root)
    return Emulated("3.11", "/usr/bin/python3", f"manylinux_2_17_{OTHER}", root)


def emulated_musl(root: Path) -> Emulated:
    """Make a tree with only musl's file and CPython for musl on the other processor."""
    compiled = ensure(MUSL[OTHER])
    shutil.copytree(compiled / "opt/python", root / "opt/python", symlinks=True)
    for name in ("lib", "dev", "tmp"):
        (root / name).mkdir()
    shutil.copy(compiled / f"lib/ld-musl-{OTHER}.so.1", root / "lib")
    os.mknod(root / "dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    copy_qemu(root)
    return Emulated(MUSL_VERSION, MUSL_PYTHON, f"musllinux_1_2_{OTHER}", root)


def copy_qemu(root: Path) -> None:
    """Copy QEMU to the root of a tree."""
    qemu = shutil.which(QEMU)
    assert qemu, "apt-get install qemu-user-static"
    shutil.copy(qemu, root)


def local(version: str) -> str:
    """Return the path of this machine's interpreter with this version; "" without one."""
    places = [Path(place) for place in os.environ.get("SRIOV_FAST_PYTHONS", "").split(":") if place]
    places += sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python3"))
    places += [Path(at) for at in (shutil.which(f"python{version}"), sys.executable) if at]
    asked = "import sys, ensurepip; print('%d.%d' % sys.version_info[:2])"
    for path in places:
        done = subprocess.run([path, "-c", asked], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip() == version:
            return str(path)
    return ""


def ensure(recipe: Recipe) -> Path:
    """Return the tree of a recipe; make it if the cache does not have it."""
    root = paths.base().parent / "pythons" / key(recipe)
    with tree.locked(root.with_suffix(".lock")):
        if not root.is_dir():
            unfinished = root.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            make(recipe, unfinished)
            unfinished.rename(root)
    return root


def make(recipe: Recipe, root: Path) -> None:
    """Make a tree of Debian's packages; compile CPython for musl in the trees of ``MUSL``."""
    mirror = apt.mirror(apt.host_sources())
    command = tree.bootstrap_command(recipe, root, mirror, apt.keyring(), apt.options())
    subprocess.run(command, check=True, capture_output=True)
    for name in ("hosts", "resolv.conf"):  # Chroot mounts this machine's files on them
        (root / "etc" / name).touch()
    for machine in (machine for machine, made in MUSL.items() if made == recipe):
        sources = root / "etc/apt/sources.list.d/sources.list"
        sources.write_text(f"deb-src {mirror} {recipe.suite} main\n")
        shutil.copy(HERE / "musl.sh", root / "opt")
        Chroot(root).run(["sh", "/opt/musl.sh", machine])
