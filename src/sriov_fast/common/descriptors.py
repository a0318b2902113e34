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


def write_all(fd: int, content: bytes) -> None:
    """Write bytes to a descriptor; the kernel may take fewer at once. Raises OSError."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]
