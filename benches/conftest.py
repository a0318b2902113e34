"""Where pytest finds the benchmarks, and they what they share with the tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent / "tests"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")
    sys.path[:0] = [str(TESTS / "plain"), str(TESTS / "netns")]
