"""Files that are replaced in one step."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

KEPT = (-1, -1)  # chown(2): the new file belongs to this process


def replace_file(path: Path, content: bytes, mode: int, owner: tuple[int, int] = KEPT) -> None:
    """Replace a file in one step, so that a reader finds the old content or the new one."""
    # not named by the process: in two containers it may have the same number
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
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
