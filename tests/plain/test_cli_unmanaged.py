"""The files that keep network managers away from VFs, and the warning of ``doctor`` if they are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from sriov_fast.cli import doctor, unmanaged
from sriov_fast.common.errors import ConfigError


@pytest.fixture(autouse=True)
def _no_udev(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unmanaged, "_apply", lambda: None)


def test_each_pf_has_its_rule(tmp_path: Path) -> None:
    assert unmanaged.covered(tmp_path) == set()
    unmanaged.write(["pf1"], tmp_path)
    unmanaged.write(["pf0", "pf1"], tmp_path)
    assert unmanaged.covered(tmp_path) == {"pf0", "pf1"}
    rules = (tmp_path / unmanaged.RULES).read_text().splitlines()[1:]
    assert rules[0] == (
        'ACTION!="remove", SUBSYSTEM=="net", TEST=="device/physfn/net/pf0", '
        'ENV{NM_UNMANAGED}="1", ENV{SRIOV_FAST_VF}="1"'
    )
    assert len(rules) == 2
    assert "Property=SRIOV_FAST_VF=1\n\n[Link]\nUnmanaged=yes" in (tmp_path / unmanaged.NETWORK).read_text()
    unmanaged.remove(tmp_path)
    assert unmanaged.covered(tmp_path) == set()
    assert not (tmp_path / unmanaged.NETWORK).exists()


@pytest.mark.parametrize("name", ["", "a/b", 'a"b', "pf*", "a b", "%k"])
def test_a_pattern_is_no_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a name in a udev rule"):
        unmanaged.write([name], tmp_path)
    assert not (tmp_path / unmanaged.RULES).exists()


@pytest.mark.parametrize("manager", unmanaged.MANAGERS)
def test_doctor_warns_where_a_manager_runs(tmp_path: Path, manager: str) -> None:
    assert list(doctor._managed(["pf0"], tmp_path)) == []
    (tmp_path / unmanaged.MANAGERS[manager]).mkdir(parents=True)
    (found,) = doctor._managed(["pf0"], tmp_path)
    assert found.level == "WARN"
    assert f"{manager} may configure its warm VFs: sriov-fast install --unmanaged pf0" in found.text
    unmanaged.write(["pf0"], tmp_path)
    assert list(doctor._managed(["pf0"], tmp_path)) == []
