"""Tables and lines of the operator's commands.

Colours are for a terminal, unless NO_COLOR is set. Elsewhere the same columns are plain text of any width.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

_ANY_WIDTH = 1 << 20  # columns
# The colours of states and of the levels of a report.
_STYLES = {
    **dict.fromkeys(("OK", "free"), "green"),
    **dict.fromkeys(("WARN", "SLOW", "returning", "used"), "yellow"),
    **dict.fromkeys(("FAIL", "broken"), "bold red"),
    **dict.fromkeys(("SET", "attached"), "cyan"),
}


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns; on a terminal the last column is folded if the others leave it space."""
    table = grid(header)
    table.columns[-1].no_wrap = False
    for row in rows:
        table.add_row(*(Text(cell, _STYLES.get(cell, "")) for cell in row))
    console = Console()
    width, console.width = console.width, _ANY_WIDTH
    if console.is_terminal and console.measure(table).minimum <= width:
        console.width = width
    show(table, console)


def grid(header: Sequence[str]) -> Table:
    """Return a table without borders and without folded cells."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in header:
        table.add_column(name, no_wrap=True)
    return table


def show(table: RenderableType, console: Console) -> None:
    """Print a table without blanks at the end of its lines."""
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def print_line(level: str, text: str) -> None:
    """Print one line of a report with its level, however long."""
    line = Text.assemble((f"{level:<4}", _STYLES.get(level, "")), "  ", text)
    console = Console()
    # print() raises an error if the reader of stdout has ended; Console.print exits with status 1.
    with console.capture() as captured:
        console.print(line, soft_wrap=True, highlight=False)
    print(captured.get(), end="", flush=True)
