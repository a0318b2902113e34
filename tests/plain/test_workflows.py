"""The workflows of CI: their steps call existing targets of the Makefile, and a release stores no token."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")
TOP = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((TOP / ".github/workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (TOP / "Makefile").read_text(), re.MULTILINE))


def steps(workflow: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
    return [step for job in jobs for step in job.get("steps", [])]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_steps_call_targets_that_exist(workflow: Path) -> None:
    called = re.findall(r"\bmake ([a-z-]+)", "\n".join(step.get("run", "") for step in steps(workflow)))
    assert set(called) <= TARGETS


def test_there_are_workflows() -> None:
    assert {path.stem for path in WORKFLOWS} == {"test", "wheels", "benchmark", "release"}


def test_a_release_stores_no_token() -> None:
    text = (TOP / ".github/workflows/release.yml").read_text()
    assert "id-token: write" in text
    assert "secrets." not in text
