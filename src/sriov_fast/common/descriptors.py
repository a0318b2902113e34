"""File descriptors."""

from __future__ import annotations

import os


def close(fd: int) -> None:
    """Close a descriptor without unwritten data; an error is ignored.

    The kernel releases the descriptor even if close(2) fails. An error, such as EIO for a client's file on
    NFS, must not prevent the caller's next step.
    """
    try:
        os.close(fd)
    except OSError:
        pass
