"""Reports of durations that were measured before, with additional figures, through pytest-benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import pytest

from ground import ON_CARD


class Replay:
    """A timer for pytest-benchmark that replays durations: each pair of calls differs by the next one."""

    def __init__(self) -> None:
        self.load([])

    def load(self, durations: Sequence[float]) -> None:
        self.times = iter([time for duration in durations for time in (0.0, duration)])

    def __call__(self) -> float:
        return next(self.times, 0.0)


_replay = Replay()
LABELS = {
    "c": "C",
    "c-macvlan": "C, macvlan",
    "macvlan": "resident, macvlan",
    "elsewhere": "C, client and server",
    "here": "C, client and server, on one CPU",
    "compiled": "in-process",
    "plain": "in-process, plain",
    "deferred": "resident, deferred",
    "bare": "interpreter alone",
}
mark = pytest.mark.benchmark(timer=_replay, disable_gc=True)


def tell(benchmark: Any, line: tuple[str, str], durations: Sequence[float], **beside: object) -> None:
    """Report ``durations`` in seconds as a line (name of the table, of the line), with more figures."""
    benchmark.group = f"card: {line[0]}" if ON_CARD else line[0]
    benchmark.extra_info.update({"label": LABELS.get(line[1], line[1])} | beside)
    _replay.load(durations)
    benchmark.pedantic(lambda: None, rounds=len(durations))


def goal(benchmark: Any, what: str, found: float, most: float) -> None:
    """Record the upper limit of a figure and whether it is met; a missed goal fails no benchmark.

    The goals are for stand-ins on a machine that is not emulated.
    """
    if ON_CARD:
        return
    met = "met" if found <= most else "missed"
    benchmark.extra_info["goal"] = {"what": what, "at most": most, "is": round(found, 3), "": met}


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed."""
    return sorted(values)[max(0, -int(-len(values) * share // 1) - 1)]


def milliseconds(seconds: float) -> float:
    return round(seconds * 1e3, 3 if seconds < 1e-3 else 2)


def spread(durations: Sequence[float]) -> dict[str, float]:
    """Return the 10th and 99th percentiles of the durations in milliseconds."""
    return {f"p{share}_ms": milliseconds(percentile(durations, share / 100)) for share in (10, 99)}


def against(mine: Mapping[int, float], other: Mapping[int, float]) -> dict[str, Any]:
    """Compare in the rounds that have both: ratio of the medians, and median of the differences.

    ``between`` is the 95 % confidence interval of the latter, by rank.
    """
    both = sorted(mine.keys() & other.keys())
    ratio = median([mine[number] for number in both]) / median([other[number] for number in both])
    over = sorted(mine[number] - other[number] for number in both)
    reach = 0.98 * len(over) ** 0.5
    low, high = (over[min(max(int(len(over) / 2 + side * reach), 0), len(over) - 1)] for side in (-1, 1))
    return {
        "ratio": round(ratio, 2),
        "over_c_ms": round(median(over) * 1e3, 2),
        "between": f"{low * 1e3:.2f} to {high * 1e3:.2f}",
    }
