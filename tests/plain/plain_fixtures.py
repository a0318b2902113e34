"""What the tests of the address service share: an etcd, stores, and the service as a process.

Its libraries are an extra, so nothing of it is imported before a test asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    import httpx
    from ipam_server import AddressService, World
    from ipamd_kit import Etcd


@pytest.fixture(scope="session")
def etcd() -> Iterator[Etcd]:
    from ipamd_kit import Etcd

    with Etcd() as server:
        yield server


@pytest.fixture(params=["sqlite", "etcd"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store of each kind."""
    if request.param == "sqlite":
        return f"sqlite://{tmp_path}/ipam.db"
    return f"{request.getfixturevalue('etcd').url}?prefix={uuid4().hex}"


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
    """An administrator, of a service that has nothing but the documented network."""
    from ipam_server import DOMAIN, release_all

    with world.admin(server) as client:
        release_all(client)
        assert client.put("/v1/config", json=DOMAIN).status_code == 200
        yield client
