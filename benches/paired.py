"""Timing of several calls in turns, so that changes of the machine's speed do not affect the ratios."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter


def paired(calls: Mapping[str, Callable[[], object]], rounds: int = 40) -> dict[str, float]:
    """Return the median microseconds of each call; a round has one call of each, two rounds warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 2):
        for name, call in calls.items():
            begin = perf_counter()
            call()
            spent = perf_counter() - begin
            if turn >= 2:
                times[name].append(spent * 1e6)
    return {name: median(spent) for name, spent in times.items()}


def figures(times: dict[str, float]) -> dict[str, float]:
    """Return entries for extra_info: ``ratio`` is plain to compiled, times are in microseconds."""
    found = {"ratio": round(times["plain"] / times["compiled"], 2)}
    if "c" in times:
        found["compiled/c"] = round(times["compiled"] / times["c"], 2)
    return found | {f"{name} us": round(spent, 1) for name, spent in times.items()}
