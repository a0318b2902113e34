"""Print pytest-benchmark's JSON as one table: name, median, ratio, and what else a benchmark noted."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def duration(seconds: float) -> str:
    """Return ``seconds`` with three digits and a fitting unit."""
    scale, unit = next((pair for pair in _UNITS if seconds >= pair[0]), (1e-9, "ns"))
    return f"{seconds / scale:.3g} {unit}"


def row(benchmark: dict[str, Any]) -> tuple[str, str, str, str]:
    """Return one line's columns. A benchmark leaves its ``ratio`` and remarks in extra_info."""
    extra = dict(benchmark.get("extra_info", {}))
    ratio = extra.pop("ratio", None)
    shown = f"{ratio:.2f}" if isinstance(ratio, int | float) else str(ratio or "")
    notes = ", ".join(f"{key} {_short(value)}" for key, value in extra.items())
    return benchmark["name"], duration(benchmark["stats"]["median"]), shown, notes


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(rows: list[tuple[str, str, str, str]]) -> list[str]:
    """Return the lines of a Markdown table, so that it can go into a document as it is."""
    rows = [("benchmark", "median", "ratio", "notes"), *rows]
    widths = [max(len(line[column]) for line in rows) for column in range(4)]
    lines = [
        "| " + " | ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)) + " |"
        for line in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    document = json.loads(parser.parse_args().report.read_text())
    print("\n".join(table([row(benchmark) for benchmark in document["benchmarks"]])))


if __name__ == "__main__":
    main()
