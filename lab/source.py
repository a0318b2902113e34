"""The project's sources: the lists of files, and their hash."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError

CHECKOUT = Path(__file__).resolve().parents[1]  # wheels do not have this package
# Changes of these do not affect the installed package.
NOT_PACKAGED = ("lab", "tests", "benches", "docs", ".ci", ".github")
_SKIPPED = frozenset({"build", "dist", "__pycache__", "node_modules"})


@dataclass(frozen=True, slots=True)
class Source:
    """The project as a directory of sources or as a wheel, and the directory with its tests."""

    path: Path
    tests: Path

    @property
    def is_wheel(self) -> bool:
        """Return whether the project is a wheel."""
        return self.path.suffix == ".whl"


def locate(given: Path | None, scratch: Path) -> Source:
    """Find the source that the user named; an sdist is unpacked below ``scratch``."""
    path = (given or CHECKOUT).resolve()
    if path.suffix == ".whl" and path.is_file():
        return Source(path, tests=CHECKOUT)
    if path.name.endswith(".tar.gz") and path.is_file():
        path = _unpack(path, scratch)
    if (path / "pyproject.toml").is_file():
        return Source(path, tests=path)
    raise LabError(f"--source {path} is neither a checkout nor an sdist (.tar.gz) nor a wheel (.whl)")


def _unpack(sdist: Path, scratch: Path) -> Path:
    with tarfile.open(sdist) as tar:
        if hasattr(tarfile, "data_filter"):  # from Python 3.11.4 on
            tar.extractall(scratch, filter="data")
        else:
            tar.extractall(scratch)  # noqa: S202 (the operator names the sdist, which pip will run)
    return next(path for path in scratch.iterdir() if path.is_dir())


def files(directory: Path) -> list[Path]:
    """Return relative paths of files that git tracks or would track; without git, all but products."""
    git = ("git", "-c", f"safe.directory={directory}", "-C", str(directory))
    command = [*git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True).stdout.decode()
        names: Iterable[Path] = (Path(name) for name in listed.split("\0") if name)
    except (OSError, subprocess.CalledProcessError):
        names = _walk(directory)
    return sorted({name for name in names if (directory / name).is_file()})


def _walk(directory: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if not _is_product(name)]
        for name in names:
            if not name.endswith((".so", ".pyc")):
                yield Path(folder, name).relative_to(directory)


def _is_product(folder: str) -> bool:
    return folder in _SKIPPED or folder.startswith(".") or folder.endswith(".egg-info")


def packaged(names: Iterable[Path]) -> list[Path]:
    """Return the files that determine the installed package."""
    return [name for name in names if name.parts[0] not in NOT_PACKAGED and name.suffix != ".md"]


def test_files(names: Iterable[Path]) -> list[Path]:
    """Return the files that tests may need in the guest: all but the package, which is installed there."""
    return [name for name in names if name.parts[0] != "src"]


def digest(directory: Path, names: Iterable[Path]) -> str:
    """Return one hash over names, contents and executable bits."""
    total = hashlib.sha256()
    for name in names:
        path = directory / name
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{name}\0{os.access(path, os.X_OK)}\0{content}\n".encode())
    return total.hexdigest()[:16]


def mirror(directory: Path, names: Iterable[Path], target: Path) -> None:
    """Copy changed files to ``target`` and delete removed ones, so that builds there are incremental."""
    wanted = list(names)
    manifest = target / ".files"
    before = set(manifest.read_text().splitlines()) if manifest.exists() else set()
    for gone in sorted(before - {str(name) for name in wanted}):
        (target / gone).unlink(missing_ok=True)
    for name in wanted:
        _copy_if_changed(directory / name, target / name)
    target.mkdir(parents=True, exist_ok=True)
    manifest.write_text("\n".join(map(str, wanted)))


def _copy_if_changed(source: Path, target: Path) -> None:
    if target.is_file() and target.read_bytes() == source.read_bytes():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    shutil.copymode(source, target)
