"""What one execution of the plugin spent its time on, as text, SVG and JSON.

The model is ``Waterfall``: spans of CLOCK_MONOTONIC between the start of the executable and its end. What the
plugin itself measured comes from the document that it writes where ``SRIOV_FAST_TRACE`` says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple
from xml.etree import ElementTree

from sriov_fast.common.errors import DecodeError

_CLOCK = "CLOCK_MONOTONIC"
_ADVICE = "the plugin and sriov-fast must be of one version: run sriov-fast install"
_MS = 1_000_000  # nanoseconds
OURS, OTHER = "ours", "other"


class Look(NamedTuple):
    """How one kind of span is drawn, and what the legend says of it."""

    colour: str
    ansi: int
    block: str
    ascii: str
    text: str


# In the order in which a moment counts where spans overlap: what makes us wait first. The colours are told
# apart by colour-blind people, too (Okabe and Ito), the blocks by anybody without colours.
LOOKS = {
    "kernel": Look("#d55e00", 31, "█", "#", "kernel"),
    OURS: Look("#0072b2", 34, "▓", "=", "plugin"),
    "ipam": Look("#009e73", 32, "▒", "+", "IPAM"),
    "process": Look("#8c8c8c", 90, "░", "-", "process start and end"),
    OTHER: Look("#cc79a7", 35, "▚", "*", "other"),
}


class Span(NamedTuple):
    """One step, in nanoseconds of CLOCK_MONOTONIC."""

    name: str
    kind: str
    start: int
    end: int

    @property
    def look(self) -> Look:
        """How it is drawn."""
        return LOOKS.get(self.kind, LOOKS[OTHER])


class Waterfall(NamedTuple):
    """One execution: its spans in the order in which they began, between ``begin`` and ``end``.

    ``totals`` has how long it and those took that it stands for, the shortest first.
    """

    verb: str
    mode: str
    begin: int
    end: int
    spans: tuple[Span, ...]
    totals: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        """How long it took, in nanoseconds."""
        return self.end - self.begin

    def shares(self) -> dict[str, int]:
        """Return the nanoseconds of each kind, the whole in all.

        A moment counts once, for the first kind in the order of LOOKS; one that no span has is the plugin's.
        """
        edges = sorted({self.begin, self.end, *(edge for span in self.spans for edge in span[2:])})
        found = dict.fromkeys(LOOKS, 0)
        for start, end in pairwise(edges):
            if self.begin <= start < self.end:
                kinds = {_kind(span) for span in self.spans if span.start <= start < span.end}
                found[next((kind for kind in LOOKS if kind in kinds), OURS)] += end - start
        return {kind: spent for kind, spent in found.items() if spent}


def median(items: Sequence[Waterfall]) -> Waterfall:
    """Return the one of median length (of two in the middle the shorter), standing for all."""
    by_length = sorted(items, key=lambda item: item.total)
    totals = tuple(item.total for item in by_length)
    return by_length[(len(items) - 1) // 2]._replace(totals=totals)


def _kind(span: Span) -> str:
    return span.kind if span.kind in LOOKS else OTHER


# --- from what the plugin wrote


def assemble(document: object, verb: str, begin: int, end: int) -> Waterfall:
    """Put the plugin's spans between the start and the end of its process; DecodeError where they are none.

    ``document`` is None where the plugin wrote nothing: then there is one span, the process.
    """
    if document is None:
        return Waterfall(verb, "", begin, end, (Span("the whole process", "process", begin, end),))
    spans, mode = _read(document)
    inside = sorted((_clipped(span, begin, end) for span in spans), key=lambda span: (span.start, span.end))
    first = min((span.start for span in inside), default=end)
    last = max((span.end for span in inside), default=end)
    around = [Span("process start", "process", begin, first), Span("process end", "process", last, end)]
    start, stop = ([span] if span.end > span.start else [] for span in around)
    return Waterfall(verb, mode, begin, end, (*start, *inside, *stop))


def _clipped(span: Span, begin: int, end: int) -> Span:
    """Cut off what the caller did not wait for."""
    start = min(max(span.start, begin), end)
    return span._replace(start=start, end=min(max(span.end, start), end))


def _read(document: object) -> tuple[list[Span], str]:
    if not isinstance(document, dict):
        raise DecodeError("the trace is not a JSON object", _ADVICE)
    if document.get("clock") != _CLOCK:
        raise DecodeError(f"the trace: clock = {document.get('clock')!r}, not {_CLOCK!r}", _ADVICE)
    spans = document.get("spans")
    if not isinstance(spans, list):
        raise DecodeError(f"the trace: spans = {spans!r}: not a list", _ADVICE)
    return [_span(item, f"spans[{at}]") for at, item in enumerate(spans)], str(document.get("mode") or "")


def _span(item: object, where: str) -> Span:
    if isinstance(item, dict):
        name, kind = item.get("name"), item.get("kind")
        start, end = item.get("start_ns"), item.get("end_ns")
        if (
            isinstance(name, str)
            and isinstance(kind, str)
            and isinstance(start, int)
            and isinstance(end, int)
        ):
            if start <= end:
                return Span(_clean(name), _clean(kind), start, end)
            raise DecodeError(f"the trace: {where} ends before it starts", _ADVICE)
    raise DecodeError(f"the trace: {where} lacks name, kind, start_ns or end_ns", _ADVICE)


def _clean(words: str) -> str:
    """Take out what a terminal would obey, or XML cannot hold."""
    return "".join(char if char.isprintable() else "?" for char in words)


# --- what the renderers share


def milliseconds(spent: int) -> str:
    """Return a time as it is shown."""
    return f"{spent / _MS:.2f}"


def ticks(most: int, count: int) -> list[int]:
    """Return about ``count`` round steps from 0 up to ``most``, in nanoseconds."""
    if most <= 0:
        return [0]
    rough = most / max(1, count)
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return list(range(0, most + 1, max(1, round(step))))  # a nanosecond is not divided


def _heading(item: Waterfall) -> str:
    mode = f", {item.mode}" if item.mode else ""
    spread = ""
    if len(item.totals) > 1:
        least, most = milliseconds(item.totals[0]), milliseconds(item.totals[-1])
        spread = f" (median of {len(item.totals)}: {least} to {most})"
    return f"{item.verb}{mode}: {milliseconds(item.total)} ms{spread}"


def _shown_shares(item: Waterfall) -> Iterator[tuple[Look, str]]:
    for kind, spent in item.shares().items():
        percent = round(100 * spent / item.total) if item.total else 0
        yield LOOKS[kind], f"{LOOKS[kind].text} {milliseconds(spent)} ms ({percent} %)"


# --- text

_LEAST_BAR = 10  # columns


def text(item: Waterfall, width: int, *, colours: bool = False, blocks: bool = True) -> str:
    """Return lines of at most ``width`` columns (some 40 are needed); ``blocks`` False: ASCII alone."""
    times = [milliseconds(span.end - span.start) for span in item.spans]
    right = max(map(len, times), default=0)
    names = max((len(span.name) for span in item.spans), default=0)
    left = max(4, min(names, width - right - 2 - _LEAST_BAR, max(12, width // 3)))
    bar = max(1, width - left - right - 2)
    lines = [_heading(item)]
    for span, time in zip(item.spans, times, strict=True):
        first, length = _columns(span, item, bar)
        mark = (span.look.block if blocks else span.look.ascii) * length
        drawn = " " * first + _coloured(mark, span.look, colours) + " " * (bar - first - length)
        lines.append(f"{_cut(span.name, left):<{left}} {drawn} {time:>{right}}")
    lines.append(f"{'':<{left}} {_axis(item.total, bar)} {'ms':>{right}}")
    lines += _legend(item, width, colours, blocks)
    return "\n".join(line.rstrip() for line in lines)


def _columns(span: Span, item: Waterfall, bar: int) -> tuple[int, int]:
    """Return the first column of a bar and its length, which is one at least."""
    scale = bar / max(1, item.total)
    first = min(bar - 1, int((span.start - item.begin) * scale))
    end = round((span.end - item.begin) * scale)
    return first, max(1, end - first)


def _cut(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}~"


def _coloured(mark: str, look: Look, colours: bool) -> str:
    return f"\x1b[{look.ansi}m{mark}\x1b[0m" if colours else mark


def _axis(total: int, bar: int) -> str:
    """Return the numbers below the bars, each beginning at its place."""
    line = ""
    for tick in ticks(total, max(1, bar // 10)):
        at = int(tick * bar / max(1, total))
        number = f"{tick / _MS:g}"
        if at >= len(line) and at + len(number) <= bar:
            line = f"{line:<{at}}{number} "
    return line.rstrip().ljust(bar)


def _legend(item: Waterfall, width: int, colours: bool, blocks: bool) -> list[str]:
    lines: list[list[tuple[Look, str]]] = [[]]
    for look, words in _shown_shares(item):
        if lines[-1] and sum(len(other) + 4 for _, other in lines[-1]) + len(words) + 2 > width:
            lines.append([])
        lines[-1].append((look, words))
    return [
        "  ".join(
            f"{_coloured(look.block if blocks else look.ascii, look, colours)} {words}"
            for look, words in line
        )
        for line in lines
    ]


# --- SVG

_WIDTH = 860  # pixels, as wide as what GitHub shows without making it smaller
_LEFT, _RIGHT, _ROW, _BAR, _MARGIN = 190, 64, 22, 14, 16
_CHARACTER = 6.6  # pixels of a letter of 12 pixels, about
_FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
_INK, _PALE, _PAPER = "#24292f", "#d8dee4", "#ffffff"


def svg(items: Sequence[Waterfall]) -> str:
    """Return a document that needs nothing else, with all of them below each other on one scale."""
    root = ElementTree.Element("svg", xmlns="http://www.w3.org/2000/svg", role="img", fill=_INK)
    root.attrib |= {"font-family": _FONT, "font-size": "12"}
    _add(root, "title", text="; ".join(map(_heading, items)))
    _add(root, "rect", width="100%", height="100%", fill=_PAPER)
    scale = (_WIDTH - _LEFT - _RIGHT - _MARGIN) / max(1, *(item.total for item in items))
    top = _MARGIN
    for item in items:
        top = _draw(root, item, scale, top)
    root.attrib |= {"width": str(_WIDTH), "height": str(top), "viewBox": f"0 0 {_WIDTH} {top}"}
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _add(
    parent: ElementTree.Element, tag: str, /, *, text: str = "", **attributes: object
) -> ElementTree.Element:
    """Add an element; in the names of attributes a low line stands for a hyphen."""
    found = ElementTree.SubElement(parent, tag)
    for name, value in attributes.items():
        found.set(name.replace("_", "-"), f"{value:.2f}" if isinstance(value, float) else str(value))
    found.text = text or None
    return found


def _draw(root: ElementTree.Element, item: Waterfall, scale: float, top: int) -> int:
    """Draw one waterfall, ``scale`` pixels for a nanosecond; return where the next may begin."""
    _add(root, "text", x=_MARGIN, y=top + 14, font_size=15, font_weight=600, text=_heading(item))
    rows = top + 28
    bottom = rows + _ROW * len(item.spans)
    _draw_axis(root, item.total, scale, (rows, bottom))
    for number, span in enumerate(item.spans):
        x = _LEFT + (span.start - item.begin) * scale
        _draw_span(root, span, rows + _ROW * number, (x, (span.end - span.start) * scale))
    return _draw_legend(root, item, bottom + 30) + _MARGIN


def _draw_axis(root: ElementTree.Element, total: int, scale: float, rows: tuple[int, int]) -> None:
    top, bottom = rows
    for tick in ticks(total, max(1, int(total * scale / 70))):
        x = _LEFT + tick * scale
        _add(root, "line", x1=x, y1=top, x2=x, y2=bottom, stroke=_PALE)
        label = f"{tick / _MS:g} ms"
        _add(root, "text", x=x, y=bottom + 15, text_anchor="middle", font_size=11, text=label)


def _draw_span(root: ElementTree.Element, span: Span, top: int, bar: tuple[float, float]) -> None:
    """Draw one row, with its ``bar`` as x and width."""
    x, width = bar[0], max(1.0, bar[1])  # what takes no time is to be seen, too
    time = f"{milliseconds(span.end - span.start)} ms"
    name = _cut(span.name, int((_LEFT - _MARGIN - 8) / _CHARACTER))
    middle = top + _ROW // 2 + 4
    _add(root, "text", x=_LEFT - 8, y=middle, text_anchor="end", text=name)
    y = top + (_ROW - _BAR) // 2
    rect = _add(root, "rect", x=x, y=y, width=width, height=_BAR, rx=1, fill=span.look.colour)
    rect.attrib |= {"data-kind": span.kind, "data-name": span.name}
    _add(rect, "title", text=f"{span.name}: {time}, {span.look.text}")
    _add(root, "text", x=x + width + 5, y=middle, font_size=11, text=time)


def _draw_legend(root: ElementTree.Element, item: Waterfall, top: int) -> int:
    """Draw the kinds with their shares; return where that ends."""
    x, y = float(_MARGIN), top
    for look, words in _shown_shares(item):
        width = 18 + len(words) * _CHARACTER + 18
        if x + width > _WIDTH and x > _MARGIN:
            x, y = float(_MARGIN), y + _ROW
        _add(root, "rect", x=x, y=y, width=12, height=12, fill=look.colour)
        _add(root, "text", x=x + 18, y=y + 10, text=words)
        x += width
    return y + _ROW


# --- JSON


def plain(item: Waterfall) -> dict[str, Any]:
    """Return what is written as JSON: milliseconds since the executable was started."""

    def since(moment: int) -> float:
        return (moment - item.begin) / _MS

    return {
        "verb": item.verb,
        "mode": item.mode,
        "total_ms": item.total / _MS,
        "totals_ms": [total / _MS for total in item.totals or (item.total,)],
        "shares_ms": {kind: spent / _MS for kind, spent in item.shares().items()},
        "spans": [
            {"name": span.name, "kind": span.kind, "start_ms": since(span.start), "end_ms": since(span.end)}
            for span in item.spans
        ],
    }
