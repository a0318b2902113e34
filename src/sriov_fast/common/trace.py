"""The duration of each step of a request, for ``sriov-fast trace``.

``SRIOV_FAST_TRACE`` in a request's environment names the file for the steps.
"""

from __future__ import annotations

import os
import stat
import time

from sriov_fast.common import json

# A FIFO must not block a request; only a regular file is written.
_OPEN = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


class Steps:
    """Spans of CLOCK_MONOTONIC in nanoseconds: name, kind, begin, end.

    Each begins where the one before it ended.
    """

    def __init__(self, path: str, mode: str, begin: int = 0) -> None:
        self.path = path
        self.mode = mode
        self.verb = ""
        self.begin = self._last = begin or time.monotonic_ns()
        self.spans: list[tuple[str, str, int, int]] = []

    def done(self, name: str, kind: str = "ours") -> None:
        """End a step that began when the one before it ended."""
        now = time.monotonic_ns()
        self.spans.append((name, kind, self._last, now))
        self._last = now

    def write(self) -> None:
        """Write the file if there is to be one, readable by root only; an error is ignored."""
        if not self.path:
            return
        keys = ("name", "kind", "start_ns", "end_ns")
        spans = [dict(zip(keys, span, strict=True)) for span in sorted(self.spans, key=lambda span: span[2])]
        document = {"clock": "CLOCK_MONOTONIC", "mode": self.mode, "verb": self.verb, "spans": spans}
        try:
            fd = os.open(self.path, _OPEN, 0o600)
        except (OSError, ValueError):
            return
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                os.ftruncate(fd, 0)
                os.write(fd, json.dumps(document))
        except OSError:
            pass
        finally:
            os.close(fd)
