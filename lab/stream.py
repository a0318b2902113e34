"""Forward the guest's output while it runs."""

from __future__ import annotations

import os
import selectors
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Report:
    """The guest's report: the times at which it reached each phase (its own clock), and the exit status."""

    phases: dict[str, float] = field(default_factory=dict)
    status: int | None = None
    late: bool = False

    def line(self, text: str) -> None:
        """Parse one line of the control port."""
        match text.split():
            case ["phase", name, seconds]:
                self.phases[name] = float(seconds)
            case ["status", status]:
                self.status = int(status)

    @property
    def started(self) -> bool:
        """Return whether the guest reached the command."""
        return "cards" in self.phases

    def durations(self) -> dict[str, float]:
        """How long each phase took."""
        starts = (0.0, *self.phases.values())
        return {name: end - start for start, (name, end) in zip(starts, self.phases.items(), strict=False)}


class Streams:
    """The reading ends of the guest's ports."""

    def __init__(self, out: Path, err: Path, control: Path, report: Report) -> None:
        self._report = report
        self._partial = b""
        self._selector = selectors.DefaultSelector()
        self._add(out, lambda data: _write(sys.stdout.fileno(), data))
        self._add(err, lambda data: _write(sys.stderr.fileno(), data))
        self._add(control, self._control)

    def _add(self, path: Path, take: Callable[[bytes], None]) -> None:
        self._selector.register(os.open(path, os.O_RDONLY | os.O_NONBLOCK), selectors.EVENT_READ, take)

    def pump(self, alive: Callable[[], bool], late: Callable[[], bool]) -> bool:
        """Forward until the guest has ended; return False if it is late before that."""
        while alive():
            if late():
                return False
            if not self._once(0.2):
                time.sleep(0.05)
        while self._once(0):
            pass
        return True

    def _once(self, wait: float) -> bool:
        moved = False
        for key, _ in self._selector.select(wait):
            data = os.read(key.fd, 65536)
            if data:
                key.data(data)
                moved = True
        return moved

    def _control(self, data: bytes) -> None:
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._report.line(line.decode(errors="replace"))

    def close(self) -> None:
        """Close every port."""
        for key in list(self._selector.get_map().values()):
            os.close(int(key.fd))
        self._selector.close()


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
