"""The fault injection itself: it counts calls, injects faults into the given call, and finds leftovers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults import calls, points, ptrace
from faults.cycle import Bench, Verdict
from faults.modes import MODES
from faults.run import Report, Result
from faults.tracer import KILL, Fault, Seen

pytestmark = pytest.mark.skipif(not ptrace.SUPPORTED, reason="the tracer knows x86-64 alone")


# Calls that change the machine or the journal.
CHANGES = ("sendto", "rename", "unlink", "flock", "setns")
KILLED = [
    *(("process", verb) for verb in ("ADD", "DEL")),
    *(("resident", verb) for verb in ("ADD", "DEL")),
    *(("macvlan", verb) for verb in ("ADD", "DEL")),
    ("deferred", "DEL"),
]
CANNOT_FAIL = ("exit_group", "execve", "arch_prctl", "set_tid_address", "brk")


@pytest.fixture(params=["process", "resident"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    mode = MODES[request.param](tmp_path)
    yield Bench(mode)
    mode.close()


@pytest.mark.parametrize(("bench", "verb"), KILLED, indirect=["bench"])
def test_a_kill_anywhere_comes_right(bench: Bench, verb: str) -> None:
    """A SIGKILL leaves no leftovers; the client completes the request of a killed server.

    The test covers every third call; `make faults` covers all.
    """
    points = [call for call in bench.record(verb).seen if call.call in CHANGES]
    assert {call.call for call in points} >= {"unlink", "flock", "sendto"}
    for call in points[::3]:
        verdict = bench.inject(verb, Fault(call.call, call.ordinal, KILL))
        assert verdict.faults == [], call
        assert bench.mode.name == "process" or bench.status == 0, call


@pytest.mark.parametrize("bench", ["client"], indirect=True)
def test_any_call_of_the_client_may_fail(bench: Bench) -> None:
    """The client replies or executes the request itself; without a working stdout it cannot reply."""
    for call in bench.record("ADD").seen:
        if call.call not in CANNOT_FAIL:
            faults = bench.inject("ADD", Fault(call.call, call.ordinal, "EIO")).faults
            if call.call in ("write", "writev"):
                faults = [fault for fault in faults if "without an error" not in fault]
            assert faults == [], call


def test_the_record_is_made_and_published_by_rename(bench: Bench) -> None:
    seen = bench.record("ADD").seen
    renamed = [call.about for call in seen if call.call == "rename"]
    assert len(renamed) == 2
    assert all(f"~{bench.pod}~eth0" in path for path in renamed)
    assert [call.ordinal for call in seen if call.call == "rename"] == [1, 2]


@pytest.mark.parametrize(("ordinal", "error"), [(1, "ENOSPC"), (2, "EIO"), (2, KILL)])
def test_a_fault_at_a_rename_comes_right(bench: Bench, ordinal: int, error: str) -> None:
    """The last rename writes the state "attached"; if it fails, the ADD is undone."""
    verdict = bench.inject("ADD", Fault("rename", ordinal, error))
    assert verdict == (True, [])


def test_a_call_that_is_not_made_is_not_reached(bench: Bench) -> None:
    assert bench.inject("DEL", Fault("rename", 999, KILL)) == (False, [])


def test_what_stays_behind_is_seen(bench: Bench) -> None:
    run = bench.mode.run

    def leaving(*args: object) -> object:
        done = run(*args)  # type: ignore[arg-type]
        (bench.node.run_dir / "left").touch()
        return done

    bench.mode.run = leaving  # type: ignore[assignment, method-assign]
    verdict = bench.inject("ADD", Fault("rename", 1, "EIO"))
    moments = ("after the failed ADD", "after DEL", "after the next DEL")
    assert verdict.faults == [f"{moment}: files: ['run/left']" for moment in moments]


def test_a_line_of_the_report_names_an_injection() -> None:
    item = points.Injection("resident", "ADD", Fault("openat", 12, "EIO"), "run/vfs/.0000:01:10.1")
    line = Result(item, Verdict(True, ["a fault"]), 0.1).line
    assert line == "resident ADD openat 12 EIO (run/vfs/.0000:01:10.1): a fault"
    assert points.parsed(line)[:3] == item[:3]


def test_a_seed_repeats_a_sample() -> None:
    found = [
        points.Injection(mode, "ADD", Fault("read", number, KILL))
        for mode in ("plain", "client")
        for number in range(20)
    ]
    assert points.mixed(found, 7) == points.mixed(found, 7) != points.mixed(found, 8)
    assert {item.mode for item in points.mixed(found, 7)[:8]} == {"plain", "client"}


def test_injections_are_the_errors_of_a_call_and_the_end_of_its_process() -> None:
    seen = [Seen("rename", 1, "", ("EIO",)), Seen("exit_group", 1, "", ())]
    assert [item.fault.error for item in points.injections("process", "ADD", seen)] == ["EIO", KILL]


def test_every_error_has_a_number() -> None:
    assert all(calls.errno_of(word) for words in calls.FAILS.values() for word in words)
    assert set(calls.FAILS) <= set(calls.NUMBERS)


def test_a_run_without_injections_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert Report(Counter(), None).end(complete=False, begin=0) == 1
    assert "0 injections" in capsys.readouterr().out
