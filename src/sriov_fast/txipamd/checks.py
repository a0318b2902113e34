"""The checks of a configuration as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sriov_fast.txipamd.model import Config


def faults(config: Config) -> list[str]:
    """Return what contradicts, each naming key and value."""
    return []
