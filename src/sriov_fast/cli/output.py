"""The output that several commands share: errors and JSON."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sriov_fast.common.errors import SriovError


def explain(error: SriovError | OSError) -> str:
    """Return an error in one line, with the advice that it carries."""
    if isinstance(error, SriovError):
        return f"{error.msg}; {error.details}" if error.details else error.msg
    why = error.strerror or str(error)
    return f"{error.filename}: {why}" if error.filename else why


def read_text(path: Path) -> str:
    """Return the content of a file without blanks around it, "" if it cannot be read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--json``, which prints one document for programs in place of text."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def print_json(document: object) -> None:
    """Print a document as indented JSON."""
    sys.stdout.write(json_text(document))


def json_text(document: object) -> str:
    """Return a document as indented JSON with a final newline."""
    import orjson

    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()
