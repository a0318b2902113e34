"""The waterfall: its model from the plugin's document, and its scale in text and SVG."""

from __future__ import annotations

import json
import re
from contextlib import redirect_stdout
from io import StringIO
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriov_fast.cli import waterfall
from sriov_fast.cli.waterfall import LOOKS, Span, Waterfall, assemble, milliseconds
from sriov_fast.common.errors import DecodeError

MS = 1_000_000
SVG = "{http://www.w3.org/2000/svg}"
BEGIN = 7_000_000_000


def document(*spans: tuple[str, str, float, float], **more: Any) -> dict[str, Any]:
    """Return the document that a plugin writes; times are in milliseconds after BEGIN."""
    listed = [
        {"name": name, "kind": kind, "start_ns": BEGIN + int(start * MS), "end_ns": BEGIN + int(end * MS)}
        for name, kind, start, end in spans
    ]
    return {"clock": "CLOCK_MONOTONIC", "mode": "in-process", "verb": "ADD", "spans": listed} | more


ADD = document(
    ("read the request", "ours", 10, 12),
    ("start IPAM", "ipam", 12, 13),
    ("IPAM", "ipam", 13, 20),
    ("move", "kernel", 13, 28),
    ("addresses", "kernel", 29, 30),
)


@pytest.fixture
def add() -> Waterfall:
    return assemble(ADD, "ADD", BEGIN, BEGIN + 40 * MS)


# --- the model


def test_the_process_around(add: Waterfall) -> None:
    assert (add.verb, add.mode, add.total) == ("ADD", "in-process", 40 * MS)
    first, last = add.spans[0], add.spans[-1]
    assert first == Span("process start", "process", BEGIN, BEGIN + 10 * MS)
    assert last == Span("process end", "process", BEGIN + 30 * MS, BEGIN + 40 * MS)
    assert [span.name for span in add.spans[1:-1]] == [item["name"] for item in ADD["spans"]]


def test_shares(add: Waterfall) -> None:
    """Each moment counts once: a move hides concurrent IPAM, and the gap at 28 ms is the plugin's time."""
    shares = {kind: spent / MS for kind, spent in add.shares().items()}
    assert shares == {"kernel": 16, "ours": 3, "ipam": 1, "process": 20}


def test_a_plugin_that_writes_nothing() -> None:
    item = assemble(None, "DEL", 5, 25)
    assert item.spans == (Span("the whole process", "process", 5, 25),)
    assert shown(item, 80)[0] == "DEL: 0.00 ms"


def test_what_comes_after_the_end_is_cut() -> None:
    """Spans of a server that end after the caller has the reply are cut off at the end of the call."""
    item = assemble(
        document(("move", "kernel", 1, 9), ("later", "ours", 9, 12)), "DEL", BEGIN, BEGIN + 5 * MS
    )
    assert [(span.name, span.start, span.end) for span in item.spans[1:]] == [
        ("move", BEGIN + MS, BEGIN + 5 * MS),
        ("later", BEGIN + 5 * MS, BEGIN + 5 * MS),
    ]
    assert sum(item.shares().values()) == item.total


GOOD = {"name": "a", "kind": "ours", "start_ns": 1, "end_ns": 2}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ([], "not a JSON object"),
        (document(clock="CLOCK_REALTIME"), "CLOCK_REALTIME"),
        (document(spans={}), "spans = {}"),
        (document(spans=[GOOD, 3]), r"spans\[1\]"),
        (document(spans=[GOOD | {"start_ns": "1"}]), r"spans\[0\]"),
        (document(spans=[{"name": "a"}]), r"spans\[0\]"),
        (document(spans=[GOOD | {"start_ns": 3}]), "ends before"),
    ],
)
def test_no_trace(wrong: object, words: str) -> None:
    with pytest.raises(DecodeError, match=words) as caught:
        assemble(wrong, "ADD", 0, 9)
    assert caught.value.details


def test_the_median_one() -> None:
    items = [assemble(None, "ADD", 0, total * MS) for total in (9, 1, 5, 7)]
    found = waterfall.median(items)
    assert found.total == 5 * MS
    assert found.totals == (MS, 5 * MS, 7 * MS, 9 * MS)
    assert "median of 4: 1.00 to 9.00" in found.heading
    assert waterfall.plain(found)["totals_ms"] == [1, 5, 7, 9]


SPANS = st.lists(
    st.tuples(
        st.text(max_size=30), st.sampled_from([*LOOKS, "x\0"]), st.integers(0, 50), st.integers(0, 50)
    ).map(lambda span: (span[0], span[1], min(span[2:]), max(span[2:]))),
    max_size=12,
)


@given(SPANS, st.integers(1, 60))
def test_the_shares_are_the_whole(spans: list[tuple[str, str, float, float]], total: int) -> None:
    item = assemble(document(*spans), "ADD", BEGIN, BEGIN + total * MS)
    assert sum(item.shares().values()) == item.total == total * MS
    assert all(BEGIN <= span.start <= span.end <= BEGIN + total * MS for span in item.spans)


# --- text


def shown(item: Waterfall, width: int) -> list[str]:
    """Return the lines of a terminal of this width."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as stdout:
        patch.setenv("COLUMNS", str(width))
        waterfall.show(item)
    return stdout.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 133, 200])
def test_text_is_to_scale(add: Waterfall, width: int) -> None:
    heading, columns, *rows, sums = shown(add, width)
    assert heading == "ADD, in-process: 40.00 ms"
    assert sums == "kernel 16.00 ms (40 %); plugin 3.00 ms (8 %); IPAM 1.00 ms (2 %); process 20.00 ms (50 %)"
    assert max(map(len, rows)) <= width
    left, right = columns.index("KIND") + len("process  "), len(rows[0]) - len("  10.00")
    scale = (right - left) / add.total
    for row, span in zip(rows, add.spans, strict=True):
        assert row.split()[-1] == milliseconds(span.end - span.start)
        bar = re.search(r"[\u2580-\u259f]+", row)
        assert bar
        assert abs(bar.start() - left - (span.start - BEGIN) * scale) <= 1
        assert abs(bar.end() - left - (span.end - BEGIN) * scale) <= 1


def test_every_step_has_a_bar() -> None:
    item = assemble(document(("last", "ours", 99.999, 100)), "ADD", BEGIN, BEGIN + 100 * MS)
    assert all(re.search(r"[\u2580-\u259f]", row) for row in shown(item, 80)[2:-1])


def test_long_names_are_cut_and_nothing_reaches_the_terminal() -> None:
    item = assemble(document(("x\x1b[2J" + "y" * 90, "ours", 0, 1)), "ADD", BEGIN, BEGIN + MS)
    lines = shown(item, 60)
    assert max(map(len, lines)) <= 60
    assert "\x1b" not in "".join(lines)


# --- SVG


def drawn(svg: str) -> tuple[ElementTree.Element, list[ElementTree.Element]]:
    root = ElementTree.fromstring(svg)
    return root, [rect for rect in root.iter(f"{SVG}rect") if "data-name" in rect.attrib]


def number(element: ElementTree.Element, key: str) -> float:
    return float(element.attrib[key])


def test_the_picture_is_to_scale(add: Waterfall) -> None:
    root, found = drawn(waterfall.svg([add]))
    assert [rect.attrib["data-name"] for rect in found] == [span.name for span in add.spans]
    left, scale = number(found[0], "x"), number(found[3], "width") / (7 * MS)
    assert scale > 0
    for rect, span in zip(found, add.spans, strict=True):
        assert number(rect, "x") - left == pytest.approx((span.start - BEGIN) * scale, abs=0.1)
        assert number(rect, "width") == pytest.approx(max(1, (span.end - span.start) * scale), abs=0.1)
        assert rect.attrib["fill"] == LOOKS[span.kind].colour
        assert milliseconds(span.end - span.start) in (rect.findtext(f"{SVG}title") or "")
    for line in root.iter(f"{SVG}line"):
        tick = (number(line, "x1") - left) / scale / MS
        assert f"{tick:.0f} ms" in [text.text for text in root.iter(f"{SVG}text")]


def test_the_picture_fits_and_needs_nothing(add: Waterfall) -> None:
    """The SVG has a fixed size, a white background, no external references, and no style or script.

    GitHub removes styles and scripts.
    """
    svg = waterfall.svg([add, add._replace(verb="DEL", end=BEGIN + 20 * MS, spans=add.spans[:2])])
    root, found = drawn(svg)
    width, height = number(root, "width"), number(root, "height")
    assert root.attrib["viewBox"] == f"0 0 {width:g} {height:g}"
    ground = next(root.iter(f"{SVG}rect"))
    assert ground.attrib == {"width": "100%", "height": "100%", "fill": "#ffffff"}
    tags = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert tags == {"svg", "title", "rect", "line", "text"}
    assert re.findall("https?://", svg) == ["http://"]  # the XML namespace of SVG
    for rect in found:
        assert number(rect, "x") + number(rect, "width") <= width
        assert number(rect, "y") + number(rect, "height") <= height
    rows = [number(rect, "y") for rect in found]
    assert rows == sorted(set(rows))  # no overlaps
    texts = [text.text or "" for text in root.iter(f"{SVG}text")]
    assert "ADD, in-process: 40.00 ms" in texts
    assert "DEL, in-process: 20.00 ms" in texts
    assert "kernel 16.00 ms (40 %)" in texts


# --- JSON


def test_figures(add: Waterfall) -> None:
    found = json.loads(json.dumps(waterfall.plain(add)))
    spans = found.pop("spans")
    shares = {"kernel": 16, "ours": 3, "ipam": 1, "process": 20}
    named = {"verb": "ADD", "mode": "in-process"}
    assert found == named | {"total_ms": 40, "totals_ms": [40], "shares_ms": shares}
    assert spans[4] == {"name": "move", "kind": "kernel", "start_ms": 13, "end_ms": 28}
