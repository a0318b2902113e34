"""Bounded waits for events."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PATIENCE = 30.0  # seconds, for events that take milliseconds on an idle machine


def wait_for(question: Callable[[], Any], why: str, seconds: float = PATIENCE) -> Any:
    """Wait until ``question`` has a true answer, and return the answer; ``why`` explains a failure."""
    deadline = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {why}"
        time.sleep(0.005)
    return answer
