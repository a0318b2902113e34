"""The HostIPs that this node has asked with, by network.

GC and STATUS come without CNI_ARGS (SPEC section 2), so the HostIP of an ADD is remembered: an empty file
``<state>/hosts/<network>/<HostIP>``. If the file is lost, GC does less until the next ADD.
"""

from __future__ import annotations

import os

from sriov_fast.common import descriptors, paths


def _directory(state_dir: str, network: str) -> str:
    return f"{state_dir}/hosts/{network}"


def remember(state_dir: str, network: str, host_ip: str) -> None:
    """Remember a HostIP; raises OSError."""
    path = f"{_directory(state_dir, network)}/{host_ip}"
    if os.path.exists(path):
        return
    paths.make_directories(_directory(state_dir, network), 0o700)
    descriptors.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))


def remembered(state_dir: str, network: str) -> list[str]:
    """Return the HostIPs of a network."""
    try:
        return sorted(os.listdir(_directory(state_dir, network)))
    except (FileNotFoundError, NotADirectoryError):
        return []
