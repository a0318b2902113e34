"""Print pytest-benchmark's JSON as Markdown tables: one for each group, and one of the goals.

With ``--into FILE``, a table also replaces the text in that file between ``<!-- table: GROUP -->`` and
``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
# Keys of extra_info that are no columns: the goal of a benchmark, and the label of its line.
_GOAL, _LABEL = "goal", "label"
_PLACE = re.compile(r"(<!-- table: (.+?) -->\n).*?(?=<!-- end -->)", re.DOTALL)

Line = dict[str, str]


def duration(seconds: float) -> str:
    """Return ``seconds`` with three digits and a fitting unit."""
    if seconds == 0:
        return "0"
    scale, unit = next((pair for pair in _UNITS if seconds >= pair[0]), (1e-9, "ns"))
    return f"{seconds / scale:.3g} {unit}"


def group_of(benchmark: dict[str, Any]) -> str:
    """Return the name of a benchmark's table: its group, else the name of its file."""
    return str(benchmark.get("group") or Path(benchmark["fullname"].partition("::")[0]).stem)


def title(benchmark: dict[str, Any]) -> str:
    """Return the label of a benchmark, else its name."""
    return str(benchmark["extra_info"].get(_LABEL) or benchmark["name"].removeprefix("test_"))


def goal(benchmark: dict[str, Any]) -> Line:
    """Return one line of the table of goals: the limit, the figure, and whether the goal is met."""
    of = {"of": f"{group_of(benchmark)}: {title(benchmark)}"}
    return of | {key: _short(value) for key, value in benchmark["extra_info"][_GOAL].items()}


def cells(benchmark: dict[str, Any]) -> Line:
    """Return one line of a table: the text of each column by the column's name."""
    extra = {key: value for key, value in benchmark["extra_info"].items() if key not in {_GOAL, _LABEL}}
    head = {"": title(benchmark), "median": duration(benchmark["stats"]["median"])}
    return head | {key: _short(value) for key, value in extra.items()}


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(lines: list[Line]) -> list[str]:
    """Return a Markdown table with the columns of all lines."""
    columns = list(dict.fromkeys(key for line in sorted(lines, key=len, reverse=True) for key in line))
    rows = [{key: key for key in columns}, *lines]
    widths = {key: max(len(row.get(key, "")) for row in rows) for key in columns}
    text = ["| " + " | ".join(f"{row.get(key, ''):<{widths[key]}}" for key in columns) + " |" for row in rows]
    return [text[0], "|" + "|".join("-" * (widths[key] + 2) for key in columns) + "|", *text[1:]]


def tables(benchmarks: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return the lines of each table by its name, in the order of the report, then the goals."""
    groups: dict[str, list[Line]] = {}
    for benchmark in benchmarks:
        groups.setdefault(group_of(benchmark), []).append(cells(benchmark))
    goals = [goal(benchmark) for benchmark in benchmarks if _GOAL in benchmark["extra_info"]]
    if goals:
        groups["goals"] = goals
    return {name: table(lines) for name, lines in groups.items()}


def replaced(text: str, known: dict[str, list[str]]) -> str:
    """Return ``text`` with its tables replaced by the known ones; an unknown table does not change."""

    def now(found: re.Match[str]) -> str:
        lines = known.get(found[2])
        return found[0] if lines is None else "\n".join([found[1], *lines, "\n"])

    return _PLACE.sub(now, text)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--into", type=Path, metavar="FILE", help="a document to renew the tables of")
    args = parser.parse_args()
    known = tables(json.loads(args.report.read_text())["benchmarks"])
    for name, lines in known.items():
        print("\n".join([f"**{name}**", "", *lines, ""]))
    if args.into:
        args.into.write_text(replaced(args.into.read_text(), known))


if __name__ == "__main__":
    main()
