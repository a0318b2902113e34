"""Finds the uplink among several network devices of one PCI function.

With an embedded switch (switchdev mode) a PF also shows the representors of its VFs and subfunctions. Their
``phys_port_name`` is such as "pf0vf3", "pf0sf88" or "c1pf0vf3"; the uplink's is "p0", or it has none
(Documentation/networking/representors.rst). A card with two ports on one function numbers them: ``dev_port``.
"""

from __future__ import annotations

import errno
import os

from sriov_fast.common.errors import is_absent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_NO_VALUE = (errno.EOPNOTSUPP, errno.EINVAL)  # the driver has no such name; the device is being removed


def of(net: str, names: Sequence[str]) -> str:
    """Return the uplink among the names in the directory ``net``: no representor, the lowest port."""
    return min(names, key=lambda name: (is_representor(f"{net}/{name}"), _port(f"{net}/{name}"), name))


def is_representor(device: str) -> bool:
    """Return whether a network device, by its directory in sysfs, represents another function's port."""
    _, prefix, number = _read(f"{device}/phys_port_name").partition("pf")
    return bool(prefix) and number[:1].isdigit()


def _port(device: str) -> int:
    text = _read(f"{device}/dev_port")
    return int(text) if text.isdigit() else 0


def _read(path: str) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            return os.fsdecode(file.read(64)).strip()
    except OSError as error:
        if is_absent(error) or error.errno in _NO_VALUE:
            return ""
        raise
