"""Keep a history of the results of ``make bench-ci``, and draw it.

``compare REPORT`` prints the figures that are slower than in the last entry of the history, with confidence
intervals that do not overlap. ``add REPORT`` compares and appends an entry: commit, machine, figures with
their intervals. ``plot FILE`` draws the history as an SVG.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

HISTORY = Path(__file__).resolve().parents[1] / "benches/history.jsonl"
WIDTH, HEIGHT, LEFT, TOP = 720, 90, 240, 30
Entry = dict[str, Any]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("command", choices=("compare", "add", "plot"))
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    known = history()
    if args.command == "plot":
        args.file.write_text(svg(known))
        return
    now = entry(json.loads(args.file.read_text()))
    print("\n".join(slower(known[-1], now) if known else ["no earlier figures to compare with"]))
    if args.command == "add":
        with HISTORY.open("a") as file:
            file.write(json.dumps(now) + "\n")


def history() -> list[Entry]:
    """Return the entries, the oldest first."""
    return [json.loads(line) for line in HISTORY.read_text().splitlines()] if HISTORY.exists() else []


def entry(report: Entry) -> Entry:
    """Return the history's entry for a report of pytest-benchmark; a figure is [value, low, high]."""
    found = {}
    for each in report["benchmarks"]:
        extra = each["extra_info"]
        value = extra.get("ratio", extra.get("count"))
        found[extra["label"]] = [value, extra.get("low", value), extra.get("high", value)]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    machine = f"{platform.machine()} {platform.release()}"
    return {"commit": commit.stdout.strip(), "machine": machine, "figures": found}


def slower(before: Entry, now: Entry) -> list[str]:
    """Return a line for each figure with an interval above that of the earlier entry."""
    old, new = before["figures"], now["figures"]
    worse = [name for name in new if name in old and new[name][1] > old[name][2]]
    lines = [
        f"slower than at {before['commit']}: {name}: {new[name][0]}, was {old[name][0]}" for name in worse
    ]
    return lines or [f"nothing is slower than at {before['commit']}"]


def svg(entries: list[Entry]) -> str:
    """Draw one row for each figure: its values over the commits, and the latest one as a number."""
    names = list(dict.fromkeys(name for each in entries for name in each["figures"]))
    rows = [line for at, name in enumerate(names) for line in row(name, entries, TOP + at * HEIGHT)]
    height = TOP + len(names) * HEIGHT
    box = f'viewBox="0 0 {LEFT + WIDTH + 80} {height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box} font-family="sans-serif"'
    return "\n".join([f'{head} font-size="12">', *rows, "</svg>"]) + "\n"


def row(name: str, entries: list[Entry], top: int) -> list[str]:
    """Draw one figure: the interval as an area, the value as a line."""
    values = [each["figures"][name] for each in entries if name in each["figures"]]
    most = max(high for _, _, high in values) or 1.0
    step = WIDTH / max(len(values) - 1, 1)

    def at(number: int, value: float) -> str:
        return f"{LEFT + number * step:.0f},{top + (HEIGHT - 20) * (1 - value / most):.1f}"

    area = [at(i, high) for i, (_, _, high) in enumerate(values)]
    area += reversed([at(i, low) for i, (_, low, _) in enumerate(values)])
    line = " ".join(at(i, value) for i, (value, _, _) in enumerate(values))
    last = at(len(values) - 1, values[-1][0]).split(",")
    return [
        f'<text x="10" y="{top + HEIGHT // 2}">{name}</text>',
        f'<polygon points="{" ".join(area)}" fill="#9bd" fill-opacity="0.5"/>',
        f'<polyline points="{line}" fill="none" stroke="#05a"/>',
        f'<circle cx="{last[0]}" cy="{last[1]}" r="3" fill="#05a"/>',
        f'<text x="{LEFT + WIDTH + 10}" y="{last[1]}">{values[-1][0]:g}</text>',
    ]


if __name__ == "__main__":
    main()
