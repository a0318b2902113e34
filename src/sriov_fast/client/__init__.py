"""The client in C that runtimes execute; see README.md. Here is only where its executable is."""

from __future__ import annotations

from pathlib import Path

NAME = "sriov-client"


def binary() -> Path | None:
    """Return the compiled client, None where the package was built without a compiler."""
    path = Path(__file__).with_name(NAME)
    return path if path.exists() else None
