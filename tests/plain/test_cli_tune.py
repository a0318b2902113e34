"""``sriov-fast tune`` on simulated files: the values that it shows, sets and restores."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sriov_fast.cli import main, tune
from sriov_fast.cli.tune import SETTINGS, Tuning
from sriov_fast.common.errors import FileError
from sriov_fast.common.paths import Roots

FILES = {item.name: item.file for item in SETTINGS}
BEFORE = {"rcu-first-fqs": "3", "rcu-next-fqs": "3", "rcu-normal": "0", "rcu-expedited": "0"}


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


class Machine:
    def __init__(self, root: Path) -> None:
        self.roots = Roots(sys=str(root / "sys"), proc=str(root / "proc"), run=str(root / "run/sriov-fast"))
        self.dev = root / "dev"
        self.state = Path(self.roots.run, "tuned.json")
        self.boot("one")
        for name, value in BEFORE.items():
            put(self.path(name), value)

    def boot(self, identity: str) -> None:
        put(Path(self.roots.proc, "sys/kernel/random/boot_id"), identity)

    def path(self, name: str) -> Path:
        return Path(self.roots.sys, FILES[name])

    def values(self) -> dict[str, str]:
        return {name: self.path(name).read_text().strip() for name in FILES if self.path(name).exists()}

    def tuning(self) -> Tuning:
        return Tuning(self.roots, str(self.dev))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    for name, root in made.roots.as_dict().items():
        monkeypatch.setenv(f"SRIOV_FAST_{name.upper()}", root)
    return made


def test_it_only_shows(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("SLOW  rcu-first-fqs    3, not 0")
    assert lines[1].startswith("SLOW  rcu-next-fqs     3, not 1")
    assert "tune --apply rcu-first-fqs rcu-next-fqs" in lines[-1]
    assert machine.values() == BEFORE
    assert not Path(machine.roots.run).exists()


def test_the_default_ones(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--apply"]) == 0
    assert machine.values() == BEFORE | {"rcu-first-fqs": "0", "rcu-next-fqs": "1"}
    shown = capsys.readouterr().out
    assert shown.startswith("SET   rcu-first-fqs")
    assert "0 (was 3)" in shown
    assert main(["tune", "--restore"]) == 0
    assert machine.values() == BEFORE
    assert "was" not in capsys.readouterr().out
    assert not machine.state.exists()


def test_those_named_twice_and_changed_by_others(machine: Machine) -> None:
    """``restore`` writes the values from before the first ``apply``, also after changes by others."""
    for _ in range(2):
        assert machine.tuning().apply(["rcu-expedited"]) == []
        assert machine.values() == BEFORE | {"rcu-expedited": "1"}
    machine.path("rcu-expedited").write_text("7")
    assert machine.tuning().apply(["rcu-expedited", "rcu-first-fqs"]) == []
    assert machine.values() == BEFORE | {"rcu-expedited": "1", "rcu-first-fqs": "0"}
    machine.path("rcu-first-fqs").write_text("9")
    assert machine.tuning().restore() == []
    assert machine.values() == BEFORE


def test_what_is_right_already_is_not_ours(machine: Machine) -> None:
    machine.path("rcu-first-fqs").write_text("0\n")
    assert machine.tuning().apply(["rcu-first-fqs"]) == []
    assert not machine.state.exists()
    machine.path("rcu-first-fqs").write_text("3\n")
    assert machine.tuning().restore() == []
    assert machine.values() == BEFORE


def test_json(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--json", "--apply", "rcu-first-fqs"]) == 0
    document = json.loads(capsys.readouterr().out)
    (first, *_) = document["settings"]
    assert (first["name"], first["now"], first["before"], first["value"]) == ("rcu-first-fqs", "0", "3", "0")
    assert [item["before"] for item in document["settings"][1:]] == [None] * 3


def test_advice(machine: Machine) -> None:
    cpu = Path(machine.roots.sys, "devices/system/cpu")
    for number, governor in enumerate(("powersave", "performance", "powersave")):
        put(cpu / f"cpu{number}/cpufreq/scaling_governor", governor)
    put(cpu / "cpuidle/current_governor", "menu")
    put(Path(machine.roots.proc, "sys/net/ipv6/conf/default/accept_dad"), "1")
    machine.dev.mkdir()
    (machine.dev / "cpu_dma_latency").write_bytes((2_000_000_000).to_bytes(4, "little"))
    assert [(item.name, item.now) for item in machine.tuning().advice()] == [
        ("cpufreq governor", "performance, powersave"),
        ("cpuidle governor", "menu"),
        ("cpu_dma_latency", "2000000000 us"),
        ("RCU callbacks", "at the tick"),
        ("IPv6 accept_dad", "1"),
    ]


@pytest.mark.parametrize(
    ("command_line", "said"),
    [
        ("quiet rcu_nocbs=all", "rcu_nocbs=all"),
        ("nohz_full=2-7 quiet", "nohz_full=2-7"),
        ("rcu_nocbs=0,1 nohz_full=1", "rcu_nocbs=0,1, nohz_full=1"),
        ("rcu_nocbs_poll root=/dev/vda", "at the tick"),
    ],
)
def test_callbacks_at_the_boot(machine: Machine, command_line: str, said: str) -> None:
    put(Path(machine.roots.proc, "cmdline"), command_line)
    assert {item.name: item.now for item in machine.tuning().advice()}["RCU callbacks"] == said


def test_a_kernel_without_some(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.path("rcu-first-fqs").unlink()
    assert main(["tune", "--apply"]) == 0
    said = capsys.readouterr()
    assert said.out.split()[:5] == ["rcu-first-fqs", "not", "in", "this", "kernel:"]
    assert said.err == ""
    assert machine.values()["rcu-next-fqs"] == "1"
    assert main(["tune", "--apply", "rcu-first-fqs", "rcu-expedited"]) == 1
    assert str(machine.path("rcu-first-fqs")) in capsys.readouterr().err
    assert machine.values()["rcu-expedited"] == "1"  # a missing setting does not prevent the next one
    assert not machine.path("rcu-first-fqs").exists()


def test_no_such_name(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--apply", "rcu-first-fqs", "nope"]) == 1
    error = capsys.readouterr().err
    assert "nope" in error
    assert "rcu-expedited" in error
    assert machine.values() == BEFORE


def test_a_value_that_the_kernel_changes(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that turns 0 into 1, as for jiffies_till_next_fqs, is reported as a fault."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data.replace(b"0", b"1")))
    (fault,) = machine.tuning().apply(["rcu-first-fqs"])
    assert fault == "rcu-first-fqs: the kernel made 1 of 0"
    monkeypatch.undo()
    assert machine.tuning().restore() == []
    assert machine.values() == BEFORE


def refuse(monkeypatch: pytest.MonkeyPatch, refused: Path, number: int) -> None:
    real = os.open

    def opened(path: Any, flags: int, *more: Any, **others: Any) -> int:
        if Path(path) == refused and flags & os.O_WRONLY:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, flags, *more, **others)

    monkeypatch.setattr(os, "open", opened)


@pytest.mark.parametrize(("number", "words"), [(13, "be root"), (16, os.strerror(16))])
def test_what_cannot_be_written(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    """A setting that cannot be written is not recorded, and the next one is still set."""
    refuse(monkeypatch, machine.path("rcu-first-fqs"), number)
    (fault,) = machine.tuning().apply([])
    assert words in fault
    assert str(machine.path("rcu-first-fqs")) in fault
    assert machine.values() == BEFORE | {"rcu-next-fqs": "1"}
    assert json.loads(machine.state.read_bytes())["before"] == {"rcu-next-fqs": "3"}


def test_a_restore_that_fails_can_be_repeated(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.tuning().apply([])
    refuse(monkeypatch, machine.path("rcu-first-fqs"), 16)
    assert len(machine.tuning().restore()) == 1
    assert machine.values() == BEFORE | {"rcu-first-fqs": "0"}
    monkeypatch.undo()
    assert machine.tuning().restore() == []
    assert machine.values() == BEFORE


def test_what_another_boot_left(machine: Machine) -> None:
    """Values from before a reboot are not restored, since the kernel has started with its own again."""
    machine.tuning().apply([])
    machine.boot("two")
    for name, value in {"rcu-first-fqs": "1", "rcu-next-fqs": "1"}.items():
        machine.path(name).write_text(value)
    assert all(state.before is None for state in machine.tuning().states())
    assert machine.tuning().restore() == []
    assert machine.values() == BEFORE | {"rcu-first-fqs": "1", "rcu-next-fqs": "1"}
    assert machine.tuning().apply([]) == []
    assert machine.tuning().restore() == []
    assert machine.values()["rcu-first-fqs"] == "1"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"before": {"rcu-normal": 1}}', "\xff"])
def test_a_state_that_is_none(machine: Machine, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An unreadable state file prevents every change, which would lose the original values."""
    machine.state.parent.mkdir(parents=True)
    machine.state.write_text(text, encoding="latin-1")
    for words in (["--apply"], ["--restore"], []):
        assert main(["tune", *words]) == 1
        assert str(machine.state) in capsys.readouterr().err
    assert machine.values() == BEFORE


def test_no_place_for_the_state(machine: Machine) -> None:
    run = Path(machine.roots.run)
    run.parent.mkdir(parents=True)
    run.write_text("")
    with pytest.raises(FileError, match=str(run)):
        machine.tuning().apply([])
    assert machine.values() == BEFORE


def test_killed_before_it_is_set(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a kill between record and change, ``restore`` rewrites the unchanged values."""

    def killed(*_: object) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(tune.Tuning, "_set", killed)
    with pytest.raises(KeyboardInterrupt):
        machine.tuning().apply([])
    monkeypatch.undo()
    assert machine.tuning().restore() == []
    assert machine.values() == BEFORE
