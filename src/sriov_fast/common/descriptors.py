"""File descriptors."""

from __future__ import annotations

import os


def close(fd: int) -> None:
    """Close a descriptor without unwritten data; an error is ignored.

    The kernel releases the descriptor whatever close(2) returns. An error, such as EIO for a client's file on
    NFS, must not keep the caller from its next step.
    """
    try:
        os.close(fd)
    except OSError:
        pass
