"""The address service itself, whatever store it keeps its records in."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sriov_fast.txipamd.model import Allocation, Ask, Config, PoolUse


class Service:
    """Hands out addresses; every answer is durable before it is given. Raises `ServiceError`."""

    async def allocate(self, ask: Ask) -> tuple[Allocation, bool]:
        """Return what the owner holds, and whether it is new."""
        raise NotImplementedError

    async def find(self, network: str, container_id: str, ifname: str) -> Allocation:
        """Return what the owner holds, or raise `NotFound`."""
        raise NotImplementedError

    async def release(
        self, network: str, container_id: str, ifname: str, host_ip: str, pod_id: str | None = None
    ) -> bool:
        """Free what the owner holds and say whether it held anything; another host or pod is a `Conflict`."""
        raise NotImplementedError

    async def collect(self, network: str, host_ip: str, valid: Iterable[tuple[str, str]]) -> int:
        """Free what owners of this host hold, except (container_id, ifname) in `valid`; return how many."""
        raise NotImplementedError

    async def status(self, network: str, host_ip: str) -> list[PoolUse]:
        """Return the use of the host's pools; raise `Exhausted` where none has a free address."""
        raise NotImplementedError

    async def usage(self) -> list[PoolUse]:
        """Return the use of all pools."""
        raise NotImplementedError

    async def allocations(self, network: str | None = None, host_ip: str | None = None) -> list[Allocation]:
        """Return what is held, of one network or host if given."""
        raise NotImplementedError

    async def config(self) -> tuple[Config, str]:
        """Return the configuration and its revision."""
        raise NotImplementedError

    async def configure(self, config: Config, revision: str | None) -> str:
        """Replace the configuration, if it still has this revision; return the new revision."""
        raise NotImplementedError

    async def export(self) -> dict[str, Any]:
        """Return everything as one consistent JSON document."""
        raise NotImplementedError

    async def load(self, document: Mapping[str, Any], *, replace: bool = False) -> None:
        """Take over an exported document, all of it or nothing.

        Allocations that are held now and not in the document are a `Conflict`, unless `replace` is set.
        """
        raise NotImplementedError

    async def ready(self) -> None:
        """Raise `Unavailable` unless the store answers."""
        raise NotImplementedError

    async def close(self) -> None:
        """Finish what was begun and let go of the store."""
        raise NotImplementedError


async def open_service(url: str, *, clock: Callable[[], float] = time.time, **options: Any) -> Service:
    """Open the service on `sqlite:///path` or `etcd://host:port,...?ca=&cert=&key=&prefix=`."""
    raise NotImplementedError
