"""pytest options of the benchmarks, and the import paths of modules that they share with the tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent / "tests"


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "a CNI plugin to measure beside ours; it gets the same environment, and a configuration on stdin"
    parser.addoption("--peer", default="", metavar="PATH", help=text)
    parser.addoption("--picture", default="", metavar="FILE", help="the SVG of one ADD's steps to write")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")
    sys.path[:0] = [str(HERE), str(TESTS / "plain")]
