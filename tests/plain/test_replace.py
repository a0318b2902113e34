"""The replacement of a file in one step."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sriov_fast.common.replace import replace_file


def test_two_containers_replace_a_file_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with the same process ID, as in two containers, replace a file concurrently."""
    path = tmp_path / "sriov"
    fsync = os.fsync

    def late(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        replace_file(path, b"of the other container", 0o755)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", late)
    replace_file(path, b"of this one", 0o755)
    assert path.read_bytes() == b"of this one"
    assert os.listdir(tmp_path) == ["sriov"]
