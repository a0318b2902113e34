"""Directories of the kernel and of our own state."""

from __future__ import annotations

import os

from sriov_fast.common.record import Record


def is_auxiliary(address: str) -> bool:
    """Return whether a device's address is a name on the auxiliary bus, such as mlx5_core.sf.4."""
    return ":" not in address


class Roots(Record):
    """Directories: the kernel's ``sys`` and ``proc``; ours, ``run`` (gone after a reboot) and ``state``.

    ``sriov_cni`` is the directory of the Kubernetes project's SR-IOV CNI, ``kubelet`` that of kubelet,
    ``networks`` that of host-local's stores.
    """

    sys: str = "/sys"
    proc: str = "/proc"
    run: str = "/run/sriov-fast"
    state: str = "/var/lib/sriov-fast"
    sriov_cni: str = "/var/lib/cni/sriov"
    kubelet: str = "/var/lib/kubelet"
    networks: str = "/var/lib/cni/networks"

    def device(self, address: str) -> str:
        """Return the directory of a device in sysfs."""
        return f"{self.sys}/bus/{'auxiliary' if is_auxiliary(address) else 'pci'}/devices/{address}"


def make_directories(path: str, mode: int) -> None:
    """Create a directory and its missing parents, each with at most this mode, less the umask.

    ``os.makedirs`` gives its mode to the last one only.
    """
    try:
        os.mkdir(path, mode)
    except FileNotFoundError:
        make_directories(os.path.dirname(path), mode)
        make_directories(path, mode)
    except FileExistsError:
        pass


def private_directory(run: str, name: str) -> str:
    """Create ``run`` and ``name`` in it for root alone (0700), if they are missing; return the path."""
    os.makedirs(os.path.dirname(run), exist_ok=True)
    path = f"{run}/{name}"
    for directory in (run, path):
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            pass
    return path


def from_environment() -> Roots:
    """Return the roots; ``SRIOV_FAST_SYS`` and so on move them."""
    given = {name: os.environ.get(f"SRIOV_FAST_{name.upper()}") for name in Roots._fields}
    return Roots(**{name: path for name, path in given.items() if path})
