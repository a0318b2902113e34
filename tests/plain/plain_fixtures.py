"""Fixtures of the plain tests: failing closes, an etcd, stores, and the address service as a process.

The libraries of the address service are an optional dependency, so only its fixtures import them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    import httpx
    from ipam_server import AddressService, World
    from ipamd_kit import Clock, Etcd

    from sriov_fast.ipamd.service import Service


@pytest.fixture
def late_error(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make every close(2) release its descriptor and then fail with EIO, as on NFS."""
    real_close = os.close

    def close(fd: int) -> None:
        real_close(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", close)
        yield


@pytest.fixture(scope="session")
def etcd() -> Iterator[Etcd]:
    from ipamd_kit import Etcd

    with Etcd() as server:
        yield server


@pytest.fixture(params=["sqlite", "etcd"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store, of each kind."""
    if request.param == "sqlite":
        return f"sqlite://{tmp_path}/ipam.db"
    return f"{request.getfixturevalue('etcd').url}?prefix={uuid4().hex}"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The event loop of the tests that are coroutines."""
    return "asyncio"


@pytest.fixture
def clock() -> Clock:
    from ipamd_kit import Clock

    return Clock()


@pytest.fixture
async def service(url: str, clock: Clock) -> AsyncIterator[Service]:
    """An address service with an empty store, of each kind."""
    from ipamd_kit import opened

    async with opened(url, clock) as found:
        yield found


@pytest.fixture
async def replica(url: str, clock: Clock) -> AsyncIterator[Service]:
    """A second address service with the same store."""
    from ipamd_kit import opened

    async with opened(url, clock) as found:
        yield found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    from ipam_server import World

    found = World(tmp_path_factory.mktemp("ipam"))
    yield found
    found.end()


@pytest.fixture(scope="module")
def server(world: World) -> AddressService:
    return world.serve("s")


@pytest.fixture
def admin(world: World, server: AddressService) -> Iterator[httpx.Client]:
    """An administrator's client of a service with the documented network and without allocations."""
    from ipam_server import DOMAIN, release_all

    with world.admin(server) as client:
        release_all(client)
        assert client.put("/v1/config", json=DOMAIN).status_code == 200
        yield client
