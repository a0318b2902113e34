"""Bounded waits for events."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

# Seconds, for events that take milliseconds on an idle machine. The lab's machine may be emulated.
PATIENCE = 120.0 if os.environ.get("SRIOV_FAST_LAB") == "1" else 60.0


def wait_for(question: Callable[[], Any], why: str, seconds: float = PATIENCE) -> Any:
    """Wait until ``question`` returns a true value, and return the value; ``why`` explains a failure."""
    deadline, pause = time.monotonic() + seconds, 0.005
    while not (answer := question()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {why}"
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    return answer
