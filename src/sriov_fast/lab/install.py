"""Install the project in the guest, natively: one directory per version, shared by all guests that run it."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

from sriov_fast.lab import pipconf, source, tree
from sriov_fast.lab.chroot import Chroot
from sriov_fast.lab.paths import Place
from sriov_fast.lab.progress import step
from sriov_fast.lab.source import Source

KEPT = 4
SECONDS_IN_USE = 3 * 3600
EXTRA = "test"
# A change here may change the dependencies, so the environment is made anew.
DEPENDENCY_FILES = ("pyproject.toml", "setup.py", "setup.cfg")
PYTHON = "/opt/sriov-fast/bin/python"
PIP = "/opt/sriov-fast/bin/pip"


@dataclass(frozen=True, slots=True)
class Installed:
    """The project as the guest sees it: a virtual environment, and the directory of CNI plugins."""

    top: Path

    @property
    def venv(self) -> Path:
        """Bound to /opt/sriov-fast."""
        return self.top / "venv"

    @property
    def plugins(self) -> Path:
        """Bound to /opt/cni/bin."""
        return self.top / "plugins"

    def binds(self) -> tuple[tuple[Path, str], ...]:
        """Both, as binds for the tree."""
        return ((self.venv, tree.PROJECT), (self.plugins, tree.PLUGINS))


def ensure(place: Place, what: Source) -> Installed:
    """Return the installation of exactly these sources, made now if it is new."""
    dependencies, version = _hashes(what)
    done = Installed(place.installs / f"{dependencies}-{version}")
    with tree.locked(place.top / "install.lock"):
        if not done.top.is_dir():
            with step("installing the project in the guest"):
                _install(place, what, dependencies, done)
        os.utime(done.top)
        _forget_old(place.installs)
    return done


def _hashes(what: Source) -> tuple[str, str]:
    if what.is_wheel:
        whole = hashlib.sha256(what.path.read_bytes()).hexdigest()
        return whole[:12], "wheel"
    names = source.packaged(source.files(what.path))
    top = [name for name in names if str(name) in DEPENDENCY_FILES]
    return source.digest(what.path, top)[:12], source.digest(what.path, names)


def _install(place: Place, what: Source, dependencies: str, done: Installed) -> None:
    unfinished = Installed(place.installs / "unfinished")
    shutil.rmtree(unfinished.top, ignore_errors=True)
    unfinished.plugins.mkdir(parents=True)
    fresh = not _reuse(place.installs, dependencies, unfinished.venv)
    unfinished.venv.mkdir(exist_ok=True)
    place.pip_cache.mkdir(exist_ok=True)
    chroot = Chroot(
        place.root,
        binds=(*unfinished.binds(), (place.pip_cache, tree.CACHE)),
        host=True,
        env={**pipconf.environment(), "PIP_CACHE_DIR": tree.CACHE},
    )
    wheel = what.path if what.is_wheel else _build_wheel(place, chroot, what)
    _install_wheel(chroot, wheel, fresh)
    _warm(chroot)
    _install_plugins(chroot, place, unfinished.plugins)
    unfinished.top.rename(done.top)


def _reuse(installs: Path, dependencies: str, venv: Path) -> bool:
    """Start from the latest environment with the same dependencies, if there is one."""
    candidates = sorted(installs.glob(f"{dependencies}-*"), key=_used)
    if candidates:
        shutil.copytree(candidates[-1] / "venv", venv, symlinks=True)
    return bool(candidates)


def build_requirements(directory: Path) -> list[str]:
    """Read what the build needs, as PEP 518 says it."""
    with (directory / "pyproject.toml").open("rb") as file:
        requires = tomllib.load(file).get("build-system", {}).get("requires", ["setuptools"])
    return [str(each) for each in requires]


def _build_wheel(place: Place, chroot: Chroot, what: Source) -> Path:
    """Build in a kept copy of the sources with kept build tools: only what changed is compiled again."""
    requires = build_requirements(what.path)
    name = hashlib.sha256(f"{what.path}\0{requires}".encode()).hexdigest()[:12]
    work = place.builds / name
    names = source.packaged(source.files(what.path)) + _readme(what.path)
    source.mirror(what.path, names, work / "src")
    shutil.rmtree(work / "wheels", ignore_errors=True)
    builder = Chroot(chroot.root, (*chroot.binds, (work, tree.BUILD)), host=True, env=chroot.env)
    python = f"{tree.BUILD}/tools/bin/python"
    if not (work / "tools/ready").exists():
        builder.run(["python3", "-m", "venv", f"{tree.BUILD}/tools"])
        builder.run([python, "-m", "pip", "install", "-q", "wheel", *requires])
        (work / "tools/ready").touch()
    wheel_command = ("pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", f"{tree.BUILD}/wheels")
    builder.run([python, "-m", *wheel_command, f"{tree.BUILD}/src"])
    return next((work / "wheels").glob("*.whl"))


def _readme(directory: Path) -> list[Path]:
    return [Path(path.name) for path in sorted(directory.glob("*.md"))]


def _install_wheel(chroot: Chroot, wheel: Path, fresh: bool) -> None:
    inside = f"/mnt/host{wheel}"
    if fresh:
        chroot.run(["python3", "-m", "venv", tree.PROJECT])
        chroot.run([PIP, "install", "-q", f"{inside}[{EXTRA}]"])
    else:
        chroot.run([PIP, "install", "-q", "--no-deps", "--force-reinstall", inside])


def _warm(chroot: Chroot) -> None:
    """Let pytest compile its plugins here, where it takes a moment: in an emulated guest it takes 17 s."""
    if chroot.succeeds([PYTHON, "-c", "import pytest"]):
        chroot.succeeds([PYTHON, "-m", "pytest", "-q", "--collect-only", "--rootdir=/srv", "/srv"])


def _install_plugins(chroot: Chroot, place: Place, target: Path) -> None:
    for plugin in sorted((place.root / tree.DEBIAN_PLUGINS.lstrip("/")).iterdir()):
        (target / plugin.name).symlink_to(f"{tree.DEBIAN_PLUGINS}/{plugin.name}")
    command = f"{tree.PROJECT}/bin/sriov-fast"
    if chroot.succeeds([command, "install", "--help"]):
        chroot.run([command, "install", "--bin-dir", tree.PLUGINS])


def _forget_old(installs: Path) -> None:
    """Keep the latest few, and all that a guest may still be running."""
    limit = time.time() - SECONDS_IN_USE
    ordered = sorted(installs.glob("*-*"), key=_used, reverse=True)
    for old in ordered[KEPT:]:
        if _used(old) < limit:
            shutil.rmtree(old, ignore_errors=True)


def _used(install: Path) -> float:
    return install.stat().st_mtime
