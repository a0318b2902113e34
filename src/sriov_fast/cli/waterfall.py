"""The steps of one execution of the plugin, as text, SVG and JSON.

The model is ``Waterfall``: spans of CLOCK_MONOTONIC between the start and the end of the executable. The
plugin itself measures its steps and writes them to the file that ``SRIOV_FAST_TRACE`` names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple
from xml.sax.saxutils import escape, quoteattr

from rich.bar import Bar
from rich.console import Console
from rich.text import Text

from sriov_fast.cli import terminal
from sriov_fast.common.errors import DecodeError

_CLOCK = "CLOCK_MONOTONIC"
_ADVICE = "the plugin and sriov-fast must be of one version: run sriov-fast install"
_MS = 1_000_000  # nanoseconds
OURS, OTHER = "ours", "other"


class Look(NamedTuple):
    """The colour of one kind of span, and its name."""

    colour: str
    text: str


# If spans overlap, a moment counts for the first kind in this order. The colours differ for colour-blind
# readers as well (Okabe and Ito).
LOOKS = {
    "kernel": Look("#d55e00", "kernel"),
    OURS: Look("#0072b2", "plugin"),
    "ipam": Look("#009e73", "IPAM"),
    "process": Look("#8c8c8c", "process"),
    OTHER: Look("#cc79a7", "other"),
}


class Span(NamedTuple):
    """One step, in nanoseconds of CLOCK_MONOTONIC."""

    name: str
    kind: str
    start: int
    end: int

    @property
    def look(self) -> Look:
        """The look of its kind."""
        return LOOKS.get(self.kind, LOOKS[OTHER])

    @property
    def spent(self) -> str:
        """Its length in milliseconds."""
        return milliseconds(self.end - self.start)


class Waterfall(NamedTuple):
    """One execution between ``begin`` and ``end``: its spans in the order of their start.

    ``totals`` has the lengths of all repetitions, the shortest first.
    """

    verb: str
    mode: str
    begin: int
    end: int
    spans: tuple[Span, ...]
    totals: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        """Its length in nanoseconds."""
        return self.end - self.begin

    @property
    def heading(self) -> str:
        """Verb, mode and length; of several repetitions the range."""
        mode = f", {self.mode}" if self.mode else ""
        spread = ""
        if len(self.totals) > 1:
            least, most = milliseconds(self.totals[0]), milliseconds(self.totals[-1])
            spread = f" (median of {len(self.totals)}: {least} to {most})"
        return f"{self.verb}{mode}: {milliseconds(self.total)} ms{spread}"

    def shares(self) -> dict[str, int]:
        """Return the nanoseconds of each kind; their sum is the total.

        A moment counts once, for the first kind in the order of LOOKS; a moment without a span is the
        plugin's.
        """
        edges = sorted({self.begin, self.end, *(edge for span in self.spans for edge in span[2:])})
        shares = dict.fromkeys(LOOKS, 0)
        for start, end in pairwise(edges):
            if self.begin <= start < self.end:
                kinds = {
                    span.kind if span.kind in LOOKS else OTHER
                    for span in self.spans
                    if span.start <= start < span.end
                }
                shares[next((kind for kind in LOOKS if kind in kinds), OURS)] += end - start
        return {kind: spent for kind, spent in shares.items() if spent}

    def legend(self) -> Iterator[tuple[Look, str]]:
        """Yield look and text of each kind's share."""
        for kind, spent in self.shares().items():
            percent = round(100 * spent / self.total) if self.total else 0
            yield LOOKS[kind], f"{LOOKS[kind].text} {milliseconds(spent)} ms ({percent} %)"


def median(items: Sequence[Waterfall]) -> Waterfall:
    """Return the one of median length (of two in the middle the shorter), with the lengths of all."""
    by_length = sorted(items, key=lambda item: item.total)
    return by_length[(len(items) - 1) // 2]._replace(totals=tuple(item.total for item in by_length))


def milliseconds(spent: int) -> str:
    """Return nanoseconds as milliseconds for the reader."""
    return f"{spent / _MS:.2f}"


# --- the plugin's document


def assemble(document: object, verb: str, begin: int, end: int) -> Waterfall:
    """Put the plugin's spans between the start and the end of its process. Raises DecodeError.

    ``document`` is None if the plugin wrote none: then one span is the whole process.
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
    """Return the part of a span that the caller waited for."""
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


def _span(item: object, key: str) -> Span:
    match item:
        case {"name": str(name), "kind": str(kind), "start_ns": int(start), "end_ns": int(end)}:
            if start <= end:
                return Span(_printable(name), _printable(kind), start, end)
            raise DecodeError(f"the trace: {key} ends before it starts", _ADVICE)
    raise DecodeError(f"the trace: {key} lacks name, kind, start_ns or end_ns", _ADVICE)


def _printable(name: str) -> str:
    """Replace the characters that control a terminal or are not allowed in XML."""
    return "".join(char if char.isprintable() else "?" for char in name)


def ticks(most: int, count: int) -> list[int]:
    """Return about ``count`` round steps from 0 up to ``most``, in nanoseconds."""
    if most <= 0:
        return [0]
    rough = most / max(1, count)
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return list(range(0, most + 1, max(1, round(step))))  # a nanosecond is not divided


def _cut(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}~"


# --- text


def show(item: Waterfall) -> None:
    """Print heading, steps and the share of each kind."""
    steps = terminal.grid(("STEP", "KIND", "", "ms"))
    steps.columns[2].no_wrap = False  # the bars get the space that is left
    steps.columns[3].justify = "right"
    least = item.total / 100  # a shorter bar may be invisible
    for span in item.spans:
        start = min(span.start - item.begin, item.total - least)
        bar = Bar(item.total, start, max(span.end - item.begin, start + least), color=span.look.colour)
        steps.add_row(Text(span.name), span.look.text, bar, span.spent)
    print(item.heading)
    terminal.show(steps, Console())
    print("; ".join(label for _, label in item.legend()))


# --- SVG

_WIDTH = 860  # pixels; GitHub shows this width without scaling
_LEFT, _RIGHT, _ROW, _BAR, _MARGIN = 190, 64, 22, 14, 16
_CHARACTER = 6.6  # pixels, the mean width of a letter of 12 pixels
_FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
_INK, _PALE, _PAPER = "#24292f", "#d8dee4", "#ffffff"


def svg(items: Sequence[Waterfall]) -> str:
    """Return a self-contained document with all waterfalls below each other, on one scale."""
    scale = (_WIDTH - _LEFT - _RIGHT - _MARGIN) / max(1, *(item.total for item in items))
    top, body = _MARGIN, []
    for item in items:
        rows = top + 28
        bottom = rows + _ROW * len(item.spans)
        body.append(_label(_MARGIN, top + 14, item.heading, 'font-size="15" font-weight="600"'))
        body += _drawn_axis(item.total, scale, rows, bottom)
        for number, span in enumerate(item.spans):
            body += _drawn_span(span, rows + _ROW * number, (span.start - item.begin) * scale, scale)
        legend, top = _drawn_legend(item, bottom + 30)
        body += legend
        top += _MARGIN
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" fill="{_INK}" font-family="{_FONT}" '
        f'font-size="12" width="{_WIDTH}" height="{top}" viewBox="0 0 {_WIDTH} {top}">'
    )
    title = f"<title>{escape('; '.join(item.heading for item in items))}</title>"
    ground = f'<rect width="100%" height="100%" fill="{_PAPER}"/>'
    return "\n  ".join([head, title, ground, *body]) + "\n</svg>\n"


def _label(x: float, y: float, content: str, attributes: str = "") -> str:
    return f'<text x="{x:.2f}" y="{y}" {attributes}>{escape(content)}</text>'


def _drawn_axis(total: int, scale: float, top: int, bottom: int) -> Iterator[str]:
    for tick in ticks(total, max(1, int(total * scale / 70))):
        x = _LEFT + tick * scale
        yield f'<line x1="{x:.2f}" y1="{top}" x2="{x:.2f}" y2="{bottom}" stroke="{_PALE}"/>'
        yield _label(x, bottom + 15, f"{tick / _MS:g} ms", 'text-anchor="middle" font-size="11"')


def _drawn_span(span: Span, top: int, offset: float, scale: float) -> Iterator[str]:
    """Yield one row; ``offset`` is the start of its bar. A bar has at least one pixel."""
    x, width = _LEFT + offset, max(1.0, (span.end - span.start) * scale)
    middle = top + _ROW // 2 + 4
    yield _label(
        _LEFT - 8, middle, _cut(span.name, int((_LEFT - _MARGIN - 8) / _CHARACTER)), 'text-anchor="end"'
    )
    yield (
        f'<rect x="{x:.2f}" y="{top + (_ROW - _BAR) // 2}" width="{width:.2f}" height="{_BAR}" rx="1" '
        f'fill="{span.look.colour}" data-kind={quoteattr(span.kind)} data-name={quoteattr(span.name)}>'
        f"<title>{escape(span.name)}: {span.spent} ms, {span.look.text}</title></rect>"
    )
    yield _label(x + width + 5, middle, f"{span.spent} ms", 'font-size="11"')


def _drawn_legend(item: Waterfall, top: int) -> tuple[list[str], int]:
    """Return the kinds with their shares, and the end of the legend."""
    x, y, lines = float(_MARGIN), top, []
    for look, label in item.legend():
        width = 18 + len(label) * _CHARACTER + 18
        if x + width > _WIDTH and x > _MARGIN:
            x, y = float(_MARGIN), y + _ROW
        lines.append(f'<rect x="{x:.2f}" y="{y}" width="12" height="12" fill="{look.colour}"/>')
        lines.append(_label(x + 18, y + 10, label))
        x += width
    return lines, y + _ROW


# --- JSON


def plain(item: Waterfall) -> dict[str, Any]:
    """Return the figures for JSON, in milliseconds since the start of the executable."""
    return {
        "verb": item.verb,
        "mode": item.mode,
        "total_ms": item.total / _MS,
        "totals_ms": [total / _MS for total in item.totals or (item.total,)],
        "shares_ms": {kind: spent / _MS for kind, spent in item.shares().items()},
        "spans": [
            {
                "name": span.name,
                "kind": span.kind,
                "start_ms": (span.start - item.begin) / _MS,
                "end_ms": (span.end - item.begin) / _MS,
            }
            for span in item.spans
        ],
    }
