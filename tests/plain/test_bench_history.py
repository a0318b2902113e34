"""The history of ``make bench-ci``: its log names each figure that is slower than before."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tools import bench_history

BEFORE = {
    "commit": "abc1234",
    "machine": "x86_64 6.12",
    "figures": {"ADD/c": [1.2, 1.1, 1.4], "sleeps": [0, 0, 0]},
}


def now(figure: list[float], sleeps: int = 0) -> dict[str, Any]:
    return {"figures": {"ADD/c": figure, "sleeps": [sleeps] * 3, "new/c": [9, 8, 10]}}


@pytest.mark.parametrize(
    ("after", "lines"),
    [
        (now([1.6, 1.5, 1.7]), ["slower than at abc1234: ADD/c: 1.6, was 1.2"]),
        (now([1.6, 1.3, 1.9]), ["nothing is slower than at abc1234"]),  # the intervals overlap
        (now([1.0, 0.9, 1.1]), ["nothing is slower than at abc1234"]),
        (now([1.2, 1.1, 1.4], sleeps=1), ["slower than at abc1234: sleeps: 1, was 0"]),
    ],
)
def test_a_figure_above_the_earlier_interval_is_slower(after: dict[str, Any], lines: list[str]) -> None:
    assert bench_history.slower(BEFORE, after) == lines


def test_the_log_names_what_is_slower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    history, report = tmp_path / "history.jsonl", tmp_path / "report.json"
    history.write_text(json.dumps(BEFORE) + "\n")
    ratio = {"label": "ADD/c", "ratio": 1.6, "low": 1.5, "high": 1.7}
    report.write_text(json.dumps({"benchmarks": [{"extra_info": ratio}]}))
    monkeypatch.setattr(bench_history, "HISTORY", history)
    monkeypatch.setattr(sys, "argv", ["bench_history.py", "compare", str(report)])
    bench_history.main()
    assert capsys.readouterr().out == "slower than at abc1234: ADD/c: 1.6, was 1.2\n"


def test_every_figure_of_the_history_is_drawn() -> None:
    entries = bench_history.history()
    drawn = ElementTree.fromstring(bench_history.svg(entries))
    texts = {each.text for each in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert {name for each in entries for name in each["figures"]} <= texts
