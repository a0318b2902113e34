"""Print pytest-benchmark's JSON as Markdown tables, one for each group, and which goals were met."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
# What a benchmark leaves in extra_info, and how a column is called.
_GOAL = "goal"


def duration(seconds: float) -> str:
    """Return ``seconds`` with three digits and a fitting unit."""
    if seconds == 0:
        return "0"
    scale, unit = next((pair for pair in _UNITS if seconds >= pair[0]), (1e-9, "ns"))
    return f"{seconds / scale:.3g} {unit}"


def group_of(benchmark: dict[str, Any]) -> str:
    """Return the table that a benchmark belongs to: the one it names, else that of its file."""
    return str(benchmark.get("group") or Path(benchmark["fullname"].partition("::")[0]).stem)


def title(benchmark: dict[str, Any]) -> str:
    """Return a benchmark's name without what all of them have."""
    return str(benchmark["name"]).removeprefix("test_")


def goal(benchmark: dict[str, Any]) -> dict[str, str]:
    """Return what a figure should be, and whether it is."""
    return {key: _short(value) for key, value in benchmark["extra_info"][_GOAL].items()}


def cells(benchmark: dict[str, Any]) -> dict[str, str]:
    """Return one line: the column's name with its text."""
    extra = {key: _short(value) for key, value in benchmark.get("extra_info", {}).items() if key != _GOAL}
    return {"benchmark": title(benchmark), "median": duration(benchmark["stats"]["median"])} | extra


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(lines: list[dict[str, str]]) -> list[str]:
    """Return a Markdown table with every column that a line has."""
    columns = list(dict.fromkeys(key for line in sorted(lines, key=len, reverse=True) for key in line))
    widths = {key: max(len(line.get(key, "")) for line in [*lines, {key: key}]) for key in columns}
    rows = [{key: key for key in columns}, *lines]
    text = ["| " + " | ".join(f"{row.get(key, ''):<{widths[key]}}" for key in columns) + " |" for row in rows]
    return [text[0], "|" + "|".join("-" * (widths[key] + 2) for key in columns) + "|", *text[1:]]


def document(benchmarks: list[dict[str, Any]]) -> list[str]:
    """Return everything: the groups in the order in which they came, then the goals."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for benchmark in benchmarks:
        groups.setdefault(group_of(benchmark), []).append(benchmark)
    text: list[str] = []
    for name, members in groups.items():
        text += [f"**{name}**", "", *table([cells(benchmark) for benchmark in members]), ""]
    goals = [benchmark for benchmark in benchmarks if _GOAL in benchmark.get("extra_info", {})]
    if goals:
        lines = [{"goal of": title(benchmark)} | goal(benchmark) for benchmark in goals]
        text += ["**Goals**", "", *table(lines), ""]
    return text


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path, nargs="+")
    for report in parser.parse_args().report:
        print("\n".join(document(json.loads(report.read_text())["benchmarks"])))


if __name__ == "__main__":
    main()
