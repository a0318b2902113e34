"""The leases that a node remembers: links under the run directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sriov_fast.ipam.txipam import leases
from sriov_fast.ipam.txipam.client import Owner


def owner(container: str = "1234", network: str = "mynet") -> Owner:
    return Owner(network=network, container_id=container, ifname="eth1", pod_id="pod", host_ip="10.0.0.1")


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(tmp_path / "run" / "sriov-fast")


def test_what_is_remembered_is_recalled_until_it_is_forgotten(run: str) -> None:
    assert leases.recall(run, owner()) == ""
    leases.remember(run, owner(), "one")
    leases.remember(run, owner(), "two")
    leases.remember(run, owner("other"), "three")
    assert (leases.recall(run, owner()), leases.recall(run, owner("other"))) == ("two", "three")
    leases.forget(run, owner())
    leases.forget(run, owner())
    assert (leases.recall(run, owner()), leases.recall(run, owner("other"))) == ("", "three")


def test_only_the_valid_are_kept_and_of_one_network(run: str) -> None:
    for each in (owner("a"), owner("b"), owner("a", "another")):
        leases.remember(run, each, "lease")
    leases.keep(run, "mynet", {("b", "eth1")})
    left = [each.container_id for each in (owner("a"), owner("b")) if leases.recall(run, each)]
    assert (left, leases.recall(run, owner("a", "another"))) == (["b"], "lease")
    leases.keep(run, "unheard-of", set())


def test_directories_are_for_root_alone(run: str) -> None:
    """Whatever the umask; the journal lies in the first of them."""
    before = os.umask(0o022)
    try:
        leases.remember(run, owner(), "lease")
    finally:
        os.umask(before)
    for directory in (run, f"{run}/leases", f"{run}/leases/mynet"):
        assert os.stat(directory).st_mode & 0o777 == 0o700


def test_no_place_for_them_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    leases.remember(str(tmp_path / "run"), owner(), "lease")
    assert leases.recall(str(tmp_path / "run"), owner()) == ""
