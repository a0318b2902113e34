"""Faults of the address service's store that need a file system of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ipam_server
import pytest
from ipam_server import World

from harness.veth import fill, tmpfs
from harness.waiting import wait_for


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    with tmpfs(tmp_path / "small", "size=2m"):
        yield tmp_path / "small"


def test_a_full_disk(world: World, small: Path) -> None:
    """/readyz returns 503 while the store's disk is full."""
    server = world.serve("full", storage=f"sqlite://{small}/ipam.db")
    with world.host(server) as client:
        ipam_server.address(ipam_server.ask(client, "c1"))
        assert client.get("/readyz").status_code == 200
        ballast = fill(small)
        wait_for(lambda: client.get("/readyz").status_code == 503, "it is not ready")
        assert "full" in ipam_server.problem(client.get("/readyz"), 503, "unavailable")
        ipam_server.problem(ipam_server.ask(client, "c2"), 503, "unavailable")
        assert "sriov_ipam_store_up 0.0" in client.get("/metrics").text
        ballast.unlink()
        assert client.get("/readyz").status_code == 200
        ipam_server.address(ipam_server.ask(client, "c2"))
        assert "sriov_ipam_store_up 1.0" in client.get("/metrics").text
    assert server.stop() == 0


def test_probes_do_not_wear_the_store(world: World, small: Path) -> None:
    """Frequent probes of /readyz do not grow the store."""
    server = world.serve("probed", storage=f"sqlite://{small}/ipam.db")
    with world.host(server) as client:
        for _ in range(300):
            assert client.get("/readyz").status_code == 200
    pages = sum(path.stat().st_size for path in small.iterdir()) // 4096
    assert pages < 100
    assert server.stop() == 0
