"""The lab's error and its exit statuses."""

from __future__ import annotations

MISSING = 3
TIMED_OUT = 124
FAILED = 125


class LabError(Exception):
    """The lab itself failed; ``status`` becomes the exit status of the command."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status
