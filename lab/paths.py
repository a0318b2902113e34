"""Paths of the lab's cache."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

DIRECTORY_VARIABLE = "SRIOV_FAST_LAB_DIR"


def base() -> Path:
    """Return the lab's cache directory."""
    chosen = os.environ.get(DIRECTORY_VARIABLE)
    if chosen:
        return Path(chosen).absolute()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "sriov-fast" / "lab"


@dataclass(frozen=True, slots=True)
class Place:
    """The directories of one recipe."""

    top: Path

    @property
    def root(self) -> Path:
        """The guest's tree, which does not change after the build."""
        return self.top / "root"

    @property
    def installs(self) -> Path:
        """The installations, one directory for each version of the project."""
        return self.top / "installs"

    @property
    def builds(self) -> Path:
        """Copies of the sources, kept so that a build compiles only changed modules."""
        return self.top / "builds"

    @property
    def pip_cache(self) -> Path:
        """The cache of pip."""
        return self.top / "pip-cache"
