"""The repetition of failed tests by ``make test``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = Path(__file__).parents[2] / "tools" / "run_tiers.py"
FAILS = "def test_fails{}(): assert False, 'never'\n"
PASSES_LATER = """
from pathlib import Path

def test_passes_later():
    seen = Path(__file__).with_name("seen")
    assert seen.exists() or seen.touch(), "the first time"
"""


@pytest.fixture
def tiers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_tiers", SOURCE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "run_tiers", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(module.PATHS, "plain", str(tmp_path / "test_it.py"))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # plugins take seconds to import
    monkeypatch.setattr(sys, "argv", ["run_tiers.py", "--tier", "plain", "--reports", str(tmp_path / "out")])
    return module


@pytest.mark.parametrize(
    ("failing", "status", "numbers"),
    [(1, 1, "3 2 1 1 0"), (3, 1, "5 1 0 4 0")],
    ids=["one passes later", "too many"],
)
def test_few_failed_tests_are_repeated_alone(
    tiers: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    failing: int,
    status: int,
    numbers: str,
) -> None:
    more = "".join(FAILS.format(number) for number in range(failing))
    (tmp_path / "test_it.py").write_text(f"def test_passes(): pass\n{PASSES_LATER}\n{more}")
    assert tiers.main() == status
    printed = capsys.readouterr().out
    assert "AssertionError: the first time" in printed  # the first failure is printed
    *_, row, _ = printed.splitlines()
    assert row.split()[1:6] == numbers.split()
    assert ("passed when repeated: " in printed) == (numbers.split()[2] == "1")


def test_a_tier_whose_failed_tests_pass_when_they_are_repeated_is_well(tiers: ModuleType) -> None:
    count = tiers.Count("plain", passed=1, failed=1, skipped=0, seconds=1.0, status=1)
    assert not count.well
    assert count.with_once(1).well
    assert not count.with_once(0).well
