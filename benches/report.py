"""Hands durations that were measured before to pytest-benchmark, and what is to be said beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import pytest

from ground import ON_CARD


class Replay:
    """A timer that tells pytest-benchmark durations that are known already, in turns."""

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
    """Report ``durations`` in seconds as one line (of which table, its name), with what stands ``beside``."""
    benchmark.group = f"card: {line[0]}" if ON_CARD else line[0]
    benchmark.extra_info.update({"label": LABELS.get(line[1], line[1])} | beside)
    _replay.load(durations)
    benchmark.pedantic(lambda: None, rounds=len(durations))


def goal(benchmark: Any, what: str, found: float, most: float) -> None:
    """Note what a figure should be at most; the table says whether it is. No benchmark fails for it.

    The goals are for stand-ins on a machine that is not emulated.
    """
    if ON_CARD:
        return
    met = "met" if found <= most else "missed"
    benchmark.extra_info["goal"] = {"what": what, "at most": most, "is": round(found, 3), "": met}


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values do not exceed."""
    return sorted(values)[max(0, -int(-len(values) * share // 1) - 1)]


def milliseconds(seconds: float) -> float:
    return round(seconds * 1e3, 3 if seconds < 1e-3 else 2)


def spread(durations: Sequence[float]) -> dict[str, float]:
    """Return where the durations lie, in milliseconds."""
    return {f"p{share}_ms": milliseconds(percentile(durations, share / 100)) for share in (10, 99)}


def against(mine: Mapping[int, float], other: Mapping[int, float]) -> dict[str, Any]:
    """Compare by the rounds that both were in: ratio of the medians, and median of the differences.

    The range is the 95 % confidence interval of that median, by rank.
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
