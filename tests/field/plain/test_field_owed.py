"""A release that is owed to an address service, and whose file cannot be read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sriov_fast.common import log
from sriov_fast.ipam.txipam import outbox
from sriov_fast.ipam.txipam.client import Owner
from sriov_fast.ipam.txipam.settings import Settings
from sriov_fast.ipam.txipam.tls import Trust

REMOTE = ("https://127.0.0.1:1",)


def test_102_a_release_that_is_owed_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was taken for a file that is no record, and removed: the address stayed taken for ever."""
    owner = Owner(network="net1", container_id="c1", ifname="eth0")
    settings = Settings(remotes=REMOTE, trust=Trust())
    outbox.enqueue(str(tmp_path), outbox.QueuedRelease(owner=owner, settings=settings, due=1e12))
    (path,) = outbox.entries(str(tmp_path))
    before = sorted(os.listdir("/proc/self/fd"))

    def no_descriptors(*_: Any, **__: Any) -> Any:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", no_descriptors)
        assert outbox.flush(str(tmp_path), log.Logger("error"), 1e12) == 1
        with pytest.raises(OSError, match="Too many open files"):
            outbox.flush_owner(str(tmp_path), owner, REMOTE, 0.0)
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert list(outbox.entries(str(tmp_path))) == [path]
    with outbox.OutboxEntry(path) as entry:
        assert entry.release is not None
