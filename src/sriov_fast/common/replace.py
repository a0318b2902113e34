"""Files that are replaced in one step."""

from __future__ import annotations

import os
from pathlib import Path

KEPT = (-1, -1)  # chown(2): the new file belongs to this process


def replace_file(path: Path, content: bytes, mode: int, owner: tuple[int, int] = KEPT) -> None:
    """Replace a file in one step, so that a reader finds the old content or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # in a container the process has the same number each time
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchown(descriptor, *owner)
            os.fchmod(descriptor, mode)  # independent of the umask
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
