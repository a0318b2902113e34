"""The leases of this node's interfaces. A release that names a lease frees no later allocation.

``<run>/leases/<network>/<container ID>~<ifname>`` is a link to the lease as its target: it is written
atomically, and disappears with the pods at a reboot. It is a cache that saves a release one request. The
service accepts the current lease alone, and tells it.
"""

from __future__ import annotations

import os
from contextlib import suppress

from sriov_fast.common import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sriov_fast.ipam.txipam.client import Owner


def _directory(run: str, network: str) -> str:
    return f"{run}/leases/{network}"


def _path(run: str, owner: Owner) -> str:
    return f"{_directory(run, owner.network)}/{owner.container_id}~{owner.ifname}"


def remember(run: str, owner: Owner, lease: str) -> None:
    """Remember the lease of an ADD; replaces an earlier one."""
    forget(run, owner)
    with suppress(OSError):  # without the link, the release asks the service for the lease
        paths.make_directories(_directory(run, owner.network), 0o700)
        os.symlink(lease, _path(run, owner))


def recall(run: str, owner: Owner) -> str:
    """Return an owner's lease, "" if it is not known."""
    try:
        return os.readlink(_path(run, owner))
    except OSError:
        return ""


def forget(run: str, owner: Owner) -> None:
    """Forget a lease that a DEL has released or put into the outbox."""
    _unlink(_path(run, owner))


def keep(run: str, network: str, valid: set[tuple[str, str]]) -> None:
    """Forget all leases of a network but those of the valid (container ID, ifname)."""
    kept = {f"{container}~{ifname}" for container, ifname in valid}
    directory = _directory(run, network)
    with suppress(OSError):
        for name in set(os.listdir(directory)) - kept:
            _unlink(f"{directory}/{name}")


def _unlink(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)
