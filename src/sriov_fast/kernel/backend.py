"""The selection of the compiled or the plain backend, and a check of its exports.

``SRIOV_FAST_BACKEND=cython|python`` forces one, which must load. Without it, the compiled backend is used; if
it was not built, the plain one. If the compiled one is broken, stderr says so and the plain one is used.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

# The exports of each module, compiled or plain.
EXPORTS = {
    "nl": ("Batch", "Socket", "bpf", "ethtool", "netns_read", "netns_write", "raw_socket", "sysfs_mount"),
    "sysfs": ("first_vf", "scan", "vf_index"),
    "irq": ("irqs", "read_masks", "write_masks"),
}


class BackendError(ImportError):
    """A backend cannot be used."""


def _load(form: str) -> dict[str, ModuleType]:
    """Import the modules of a backend. Raises ModuleNotFoundError only if all of them are missing."""
    trio, absent = {}, []
    for part, exports in EXPORTS.items():
        name = form.format(part)
        try:
            __import__(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise BackendError(f"{name}: {error}") from error
            absent.append(name)
            continue
        trio[part] = sys.modules[name]
        missing = [export for export in exports if not hasattr(trio[part], export)]
        if missing:
            raise BackendError(f"{name} lacks {', '.join(missing)}")
    if absent and trio:
        raise BackendError(f"{', '.join(absent)} missing, others are there")
    if absent:
        raise ModuleNotFoundError(f"No module named {', '.join(absent)}")
    return trio


def _select(wanted: str) -> tuple[str, dict[str, ModuleType]]:
    if wanted not in ("", "cython", "python"):
        raise BackendError(f"SRIOV_FAST_BACKEND={wanted!r}: not one of cython, python")
    if wanted != "python":
        try:
            return "cython", _load("sriov_fast._{}")
        except ImportError as error:
            if wanted:
                raise BackendError(f"SRIOV_FAST_BACKEND={wanted}: {error}") from error
            if not isinstance(error, ModuleNotFoundError):
                warning = f"sriov-fast: the compiled backend is broken, the plain one serves: {error}\n"
                sys.stderr.write(warning)
    return "python", _load("sriov_fast.kernel._{}_py")


__all__ = ["BackendError", "irq", "name", "nl", "sysfs"]

name, _trio = _select(os.environ.get("SRIOV_FAST_BACKEND", ""))
if TYPE_CHECKING:
    from sriov_fast import _irq as irq
    from sriov_fast import _nl as nl
    from sriov_fast import _sysfs as sysfs
else:
    nl = _trio["nl"]
    sysfs = _trio["sysfs"]
    irq = _trio["irq"]
