"""The counts of one process of the server, for its metrics."""

from __future__ import annotations

import _thread
import sys
import time

from sriov_fast.common import json
from sriov_fast.common.errors import SriovError
from sriov_fast.server.histogram import Histogram
from sriov_fast.vf import locks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sriov_fast.common.trace import Steps

VERBS = frozenset(("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"))
_NO_CODE = 999  # of an error that is not CNI's JSON


class Counts:
    """Requests by verb and code, their times and those of their steps, waits for locks."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str], int] = {}
        self.seconds = Histogram(
            "sriov_fast_request_seconds", "Time from the first byte of a request to its reply", "verb"
        )
        self.steps = Histogram("sriov_fast_step_seconds", "Time of each step of a request", "step", "verb")
        self._lock = _thread.allocate_lock()

    def served(self, verb: str, status: int, output: bytes, steps: Steps) -> None:
        """Count a request that was just replied to."""
        seconds = (time.monotonic_ns() - steps.begin) / 1e9
        verb = verb if verb in VERBS else "other"
        self.seconds.observe(seconds, verb)
        for name, _, start, end in steps.spans:
            self.steps.observe((end - start) / 1e9, name, verb)
        key = verb, str(_code(output) if status else 0)
        # last: a scrape reads this number first, so that a request which it counts has its times there, too
        with self._lock:
            self.requests[key] = self.requests.get(key, 0) + 1

    def plain(self) -> dict[str, Any]:
        """Return all counts for JSON; ``requests`` has [verb, code, number]."""
        return {
            "requests": [[*key, number] for key, number in list(self.requests.items())],
            "seconds": self.seconds.plain(),
            "steps": self.steps.plain(),
            "waits": {name: getattr(locks.waits, name) for name in locks.Waits.__slots__},
            "retries": _retries(),
        }


def _code(output: bytes) -> int:
    """Return the code of a CNI error."""
    try:
        return int(json.loads(output)["code"])
    except (SriovError, TypeError, KeyError, ValueError):
        return _NO_CODE


def _retries() -> int:
    """Return how often txipam asked again; a node that has not used it does not load it."""
    retry = sys.modules.get("sriov_fast.ipam.txipam.retry")
    return retry.repeated.number if retry else 0
