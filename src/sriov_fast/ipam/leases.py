"""The lease of what each interface here has: the name by which its release takes that and nothing else.

``<run>/leases/<network>/<container ID>~<ifname>`` is a link whose target is the lease, so that it is there as
a whole or not at all, and gone with the pods after a reboot. It spares a release a question, and is no more
than that: the service takes no lease that is not the current one, and tells which one is.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sriov_fast.ipam.service import Owner


def _directory(run: str, network: str) -> str:
    return f"{run}/leases/{network}"


def _path(run: str, owner: Owner) -> str:
    return f"{_directory(run, owner.network)}/{owner.container_id}~{owner.ifname}"


def remember(run: str, owner: Owner, lease: str) -> None:
    """Remember what an ADD got, in the place of what was there."""
    path = _path(run, owner)
    _unlink(path)
    try:
        try:
            os.symlink(lease, path)
        except FileNotFoundError:
            _make_directories(run, owner.network)
            os.symlink(lease, path)
    except OSError:
        pass  # a release asks for it


def _make_directories(run: str, network: str) -> None:
    """Make what is missing, each for root alone: makedirs gives its mode to the last one only."""
    for directory in (run, f"{run}/leases", _directory(run, network)):
        os.makedirs(directory, 0o700, exist_ok=True)


def recall(run: str, owner: Owner) -> str:
    """Return an owner's lease, "" where it is not known."""
    try:
        return os.readlink(_path(run, owner))
    except OSError:
        return ""


def forget(run: str, owner: Owner) -> None:
    """Forget what a DEL has given back, or written down."""
    _unlink(_path(run, owner))


def keep(run: str, network: str, valid: set[tuple[str, str]]) -> None:
    """Forget all but the valid (container ID, ifname) of a network."""
    kept = {f"{container}~{ifname}" for container, ifname in valid}
    directory = _directory(run, network)
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for name in names:
        if name not in kept:
            _unlink(f"{directory}/{name}")


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
