"""Native installation of the project for the guest: one directory per version, shared by all guests."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

from lab import pipconf, source, tree
from lab.chroot import Chroot
from lab.paths import Place
from lab.progress import step
from lab.source import Source

KEPT = 4
SECONDS_IN_USE = 3 * 3600
# The address service for the demo and its tests; pytest for the tests in the guest.
EXTRAS = "ipam,test"
# A change of these files may change the dependencies, so it requires a new environment.
DEPENDENCY_FILES = ("pyproject.toml", "setup.py", "setup.cfg")
PYTHON = "/opt/sriov-fast/bin/python"
PIP = "/opt/sriov-fast/bin/pip"


@dataclass(frozen=True, slots=True)
class Installed:
    """The project as the guest sees it: a virtual environment, and the directory of CNI plugins."""

    top: Path

    @property
    def venv(self) -> Path:
        """The virtual environment, bound to /opt/sriov-fast."""
        return self.top / "venv"

    @property
    def site(self) -> Path:
        """The directory of the environment's Python packages."""
        return next(self.venv.glob("lib/python3*/site-packages"))

    @property
    def plugins(self) -> Path:
        """The directory of CNI plugins, bound to /opt/cni/bin."""
        return self.top / "plugins"

    def binds(self) -> tuple[tuple[Path, str], ...]:
        """Return both directories as binds for the tree."""
        return ((self.venv, tree.PROJECT), (self.plugins, tree.PLUGINS))


def ensure(place: Place, what: Source) -> Installed:
    """Return the installation of exactly these sources; make it if there is none."""
    dependencies, version = _hashes(what)
    done = Installed(place.installs / f"{dependencies}-{version}")
    with tree.locked(place.top / "install.lock"):
        if not done.top.is_dir():
            with step("installing the project in the guest"):
                _install(place, what, dependencies, done)
        os.utime(done.top)
        _forget_old(place.installs, SECONDS_IN_USE)
        _forget_old(place.builds, 0)
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
    """Copy the latest environment with the same dependencies; return whether there is one."""
    candidates = sorted(installs.glob(f"{dependencies}-*"), key=_used)
    if candidates:
        # Hard links suffice: pip replaces files and never writes into them.
        shutil.copytree(candidates[-1] / "venv", venv, symlinks=True, copy_function=os.link)
    return bool(candidates)


def build_requirements(directory: Path) -> list[str]:
    """Return the requirements of the build (PEP 518)."""
    with (directory / "pyproject.toml").open("rb") as file:
        requires = tomllib.load(file).get("build-system", {}).get("requires", ["setuptools"])
    return [str(each) for each in requires]


def _build_wheel(place: Place, chroot: Chroot, what: Source) -> Path:
    """Build in a kept copy of the sources with kept build tools, which compiles only changed modules."""
    requires = build_requirements(what.path)
    tools = place.top / f"tools-{_short_hash(*requires)}"
    work = place.builds / f"build-{_short_hash(str(what.path))}"
    names = source.packaged(source.files(what.path)) + _readme(what.path)
    source.mirror(what.path, names, work / "src")
    _drop_products(work / "src")
    shutil.rmtree(work / "wheels", ignore_errors=True)
    os.utime(work)
    for directory in (tools, work / "tools"):  # the second is the mount point of the first
        directory.mkdir(exist_ok=True)
    binds = (*chroot.binds, (work, tree.BUILD), (tools, tree.TOOLS))
    builder = Chroot(chroot.root, binds, host=True, env=chroot.env)
    python = f"{tree.TOOLS}/bin/python"
    if not (tools / "ready").exists():
        builder.run(["python3", "-m", "venv", tree.TOOLS])
        builder.run([python, "-m", "pip", "install", "-q", "wheel", *requires])
        (tools / "ready").touch()
    command = ("pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", f"{tree.BUILD}/wheels")
    builder.run([python, "-m", *command, f"{tree.BUILD}/src"])
    return next((work / "wheels").glob("*.whl"))


def _drop_products(directory: Path) -> None:
    """Delete the files of an earlier build, which the next wheel would contain; keep compiled modules."""
    for path in directory.glob("build/lib*/**/*"):
        stem = path.name.partition(".")[0]
        compiled = path.suffix == ".so" and any(directory.glob(f"src/**/{stem}.pyx"))
        if path.is_file() and not compiled:
            path.unlink()


def _short_hash(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:12]


def _readme(directory: Path) -> list[Path]:
    return [Path(path.name) for path in sorted(directory.glob("*.md"))]


def _install_wheel(chroot: Chroot, wheel: Path, fresh: bool) -> None:
    inside = f"/mnt/host{wheel}"
    if fresh:
        chroot.run(["python3", "-m", "venv", tree.PROJECT])
        chroot.run([PIP, "install", "-q", f"{inside}[{EXTRAS}]"])
    else:
        chroot.run([PIP, "install", "-q", "--no-deps", "--force-reinstall", inside])


def _warm(chroot: Chroot) -> None:
    """Let pytest compile its plugins natively: in an emulated guest this takes 17 s."""
    if chroot.succeeds([PYTHON, "-c", "import pytest"]):
        chroot.succeeds([PYTHON, "-m", "pytest", "-q", "--collect-only", "--rootdir=/srv", "/srv"])


def _install_plugins(chroot: Chroot, place: Place, target: Path) -> None:
    for plugin in sorted((place.root / tree.DEBIAN_PLUGINS.lstrip("/")).iterdir()):
        (target / plugin.name).symlink_to(f"{tree.DEBIAN_PLUGINS}/{plugin.name}")
    command = f"{tree.PROJECT}/bin/sriov-fast"
    if chroot.succeeds([command, "install", "--help"]):
        chroot.run([command, "install", "--no-server", "--bin-dir", tree.PLUGINS])


def _forget_old(directory: Path, seconds: float) -> None:
    """Delete all but the latest ``KEPT`` and those used in the last ``seconds``, which a guest may run."""
    limit = time.time() - seconds
    ordered = sorted(directory.glob("*-*"), key=_used, reverse=True)
    for old in ordered[KEPT:]:
        if _used(old) < limit:
            shutil.rmtree(old, ignore_errors=True)


def _used(path: Path) -> float:
    return path.stat().st_mtime
