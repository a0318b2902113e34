"""Histograms of seconds in Prometheus' text format.

A node has some hundreds of these samples. ``prometheus_client`` takes 15 microseconds to write one, half of
the time of a scrape; here the constant part of each line is kept.
"""

from __future__ import annotations

import _thread
from bisect import bisect_left

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Plain = list[tuple[list[str], list[int], float]]  # labels, numbers by bucket, sum

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class _Child:
    """The observations with the same labels: their number by bucket, and their sum."""

    def __init__(self, name: str, labels: str) -> None:
        self.numbers = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0
        bounds = (*map(str, BOUNDS), "+Inf")
        self._buckets = [f'{name}_bucket{{{labels},le="{bound}"}} ' for bound in bounds]
        self._count, self._sum = f"{name}_count{{{labels}}} ", f"{name}_sum{{{labels}}} "

    def text(self, others: Sequence[tuple[list[int], float]]) -> str:
        """Return the samples; ``others`` are the numbers and the sums of other processes."""
        lines, total = [], 0
        for line, *numbers in zip(self._buckets, self.numbers, *(item[0] for item in others), strict=True):
            total += sum(numbers)
            lines.append(f"{line}{total}\n")
        seconds = sum((item[1] for item in others), self.sum)
        return f"{''.join(lines)}{self._count}{total}\n{self._sum}{seconds!r}\n"


class Histogram:
    """A histogram with labels. Their values have no quotes, backslashes or line breaks."""

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self._name = name
        self._head = f"# HELP {name} {text}\n# TYPE {name} histogram\n"
        self._labels = labels
        self._children: dict[tuple[str, ...], _Child] = {}
        self._lock = _thread.allocate_lock()

    def observe(self, seconds: float, *values: str) -> None:
        """Count a time under these values of the labels."""
        with self._lock:
            child = self._child(values)
            child.numbers[bisect_left(BOUNDS, seconds)] += 1
            child.sum += seconds

    def _child(self, values: tuple[str, ...]) -> _Child:
        child = self._children.get(values)
        if child is None:
            pairs = zip(self._labels, values, strict=True)
            labels = ",".join(f'{label}="{value}"' for label, value in pairs)
            child = self._children[values] = _Child(self._name, labels)
        return child

    def plain(self) -> Plain:
        """Return all observations for JSON."""
        with self._lock:
            return [([*values], [*child.numbers], child.sum) for values, child in self._children.items()]

    def text(self, others: Sequence[Plain] = ()) -> str:
        """Return all samples, after their description; ``others`` are those of other processes."""
        more: dict[tuple[str, ...], list[tuple[list[int], float]]] = {}
        with self._lock:
            for values, numbers, seconds in (item for other in others for item in other):
                self._child(tuple(values))
                more.setdefault(tuple(values), []).append((numbers, seconds))
            texts = [child.text(more.get(values, ())) for values, child in self._children.items()]
        return self._head + "".join(texts)
