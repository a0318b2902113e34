"""The sysctl disable_ipv6: a write occupies a CPU until the kernel's RTNL is free."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from sriov_fast.vf import rtnl

SOON = 10.0  # seconds


@pytest.fixture
def sysctl(tmp_path: Path) -> Path:
    path = tmp_path / "sys/net/ipv6/conf/eth0/disable_ipv6"
    path.parent.mkdir(parents=True)
    path.write_text("0")
    return path


def start(sysctl: Path, value: str) -> threading.Thread:
    args = -1, "eth0", value, str(sysctl.parents[5])
    thread = threading.Thread(target=rtnl.require_disable_ipv6, args=args)
    thread.start()
    return thread


def test_another_value_waits_for_its_turn(sysctl: Path) -> None:
    with rtnl.TURNS:
        thread = start(sysctl, "1")
        thread.join(0.1)
        assert thread.is_alive()
        assert sysctl.read_text() == "0"
    thread.join(SOON)
    assert sysctl.read_text() == "1"


def test_the_same_value_is_not_written(sysctl: Path) -> None:
    with rtnl.TURNS:
        thread = start(sysctl, "0")
        thread.join(SOON)
        assert not thread.is_alive()
