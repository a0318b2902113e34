"""Locks: one holder at a time, whatever happens to the files; a bounded wait that names the holder."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sriov_fast.common.errors import FileError, TryAgainError
from sriov_fast.vf import locks


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(tmp_path / "deep/run")


def files(run: str) -> list[str]:
    return sorted(os.listdir(f"{run}/locks"))


def test_one_holder(run: str) -> None:
    with locks.acquire(run, "vf-1", "ADD a"):
        assert locks.attempt(run, "vf-1", "ADD b") is None
        with locks.acquire(run, "vf-2", "ADD b"):
            assert files(run) == ["vf-1", "vf-2"]
    assert files(run) == []
    with locks.acquire(run, "vf-1", "ADD b", wait=0):
        pass


def test_a_bounded_wait_names_the_holder(run: str) -> None:
    with locks.acquire(run, "vf-1", "ADD c1 eth0"), pytest.raises(TryAgainError) as caught:
        locks.acquire(run, "vf-1", "ADD c2 eth0", wait=0.05)
    assert caught.value.code == 11
    assert caught.value.msg == (
        f"the lock of vf-1 was not free within 0.05 s: held by pid {os.getpid()}, ADD c1 eth0"
    )
    assert caught.value.details
    assert files(run) == []


def test_whoever_waits_gets_it(run: str) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        held = locks.acquire(run, "x", "child")
        os.write(writer, b"!")
        signal.sigtimedwait([], 0.1)
        held.release()
        os._exit(0)
    os.read(reader, 1)
    assert locks.attempt(run, "x", "me") is None
    with locks.acquire(run, "x", "me"):
        assert locks.holder_of(run, "x") == f"pid {os.getpid()}, me"
    os.waitpid(child, 0)
    for fd in (reader, writer):
        os.close(fd)


def test_the_dead_hold_nothing(run: str) -> None:
    child = os.fork()
    if child == 0:
        locks.acquire(run, "x", "child")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert files(run) == ["x"]
    with locks.acquire(run, "x", "me", wait=0):
        assert locks.holder_of(run, "x") == f"pid {os.getpid()}, me"
    assert files(run) == []


def test_a_close_that_fails_has_let_go(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Close(2) closes the descriptor and drops the lock whatever it returns."""
    close = os.close

    def refuse(fd: int) -> None:
        close(fd)
        raise OSError(5, "Input/output error")

    lock = locks.acquire(run, "vf-1", "ADD a")
    with monkeypatch.context() as patched:
        patched.setattr(os, "close", refuse)
        lock.release()
    with locks.acquire(run, "vf-1", "ADD b", wait=0):
        pass


def test_release_twice(run: str) -> None:
    lock = locks.acquire(run, "x", "me")
    lock.release()
    with locks.acquire(run, "x", "other"):
        lock.release()
        assert files(run) == ["x"], "the second release took somebody else's file"
        assert locks.attempt(run, "x", "third") is None


def test_no_descriptor_is_left(run: str) -> None:
    with locks.acquire(run, "x", "me"):
        pass
    before = os.listdir("/proc/self/fd")
    for _ in range(20):
        with locks.acquire(run, "x", "me"):
            assert locks.attempt(run, "x", "other") is None
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("what", ["file", "directory"])
def test_somebody_clears_the_directory(run: str, what: str) -> None:
    with locks.acquire(run, "x", "me"):
        if what == "file":
            os.unlink(f"{run}/locks/x")
        else:
            shutil.rmtree(run)
    with locks.acquire(run, "x", "me"):
        assert files(run) == ["x"]


def test_modes_whatever_the_umask(run: str) -> None:
    old = os.umask(0)
    try:
        with locks.acquire(run, "x", "me"):
            paths = (run, f"{run}/locks", f"{run}/locks/x")
            assert [os.stat(path).st_mode & 0o7777 for path in paths] == [0o700, 0o700, 0o600]
    finally:
        os.umask(old)


def test_a_symbolic_link_is_not_followed(run: str, tmp_path: Path) -> None:
    os.makedirs(f"{run}/locks")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    os.symlink(victim, f"{run}/locks/x")
    with pytest.raises(FileError):
        locks.attempt(run, "x", "me")
    assert victim.read_text() == "precious"


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(FileError) as caught:
        locks.acquire(str(tmp_path / "run"), "x", "me")
    assert f"{tmp_path}/run/locks/x" in caught.value.msg
    assert caught.value.code == 5


def test_a_name_of_somebody_strange(run: str) -> None:
    with locks.acquire(run, "x", "ADD c \udcff\n"):
        assert "ADD c" in locks.holder_of(run, "x")
    assert locks.holder_of(run, "x") == "a process that has just released it"


def hammer(run: str, counter: str, rounds: int) -> None:
    for _ in range(rounds):
        with locks.acquire(run, "x", f"hammer {os.getpid()}"):
            value = int(Path(counter).read_text())
            if value % 7 == 0:
                os.sched_yield()
            Path(counter).write_text(str(value + 1))


def test_many_processes(run: str, tmp_path: Path) -> None:
    """Every release unlinks the file while others have it open: a lock on a dead file counts for nothing."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    context = multiprocessing.get_context("fork")
    crowd = [context.Process(target=hammer, args=(run, str(counter), 150)) for _ in range(8)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join()
    assert [one.exitcode for one in crowd] == [0] * 8
    assert counter.read_text() == "1200"
    assert files(run) == []


# --- threads of one process


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_one_thread_at_a_time(run: str) -> None:
    """Also where nobody can see it by the file: somebody has cleared the directory."""
    inside, most = [0], [0]

    def hold() -> None:
        for number in range(50):
            with locks.acquire(run, "x", "thread"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                if number % 10 == 0:
                    shutil.rmtree(run)
                time.sleep(0)
                inside[0] -= 1

    for thread in [in_thread(hold) for _ in range(8)]:
        thread.join()
    assert (inside, most) == ([0], [1])
    assert locks._thread_locks == {}


def test_a_thread_that_waits_is_woken(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, by who lets go: the pause between two looks at the file is far longer here."""
    monkeypatch.setattr(locks, "_PAUSE", 60.0)
    monkeypatch.setattr(locks, "_LONGEST_PAUSE", 60.0)
    held = locks.acquire(run, "x", "first")
    got: list[str] = []

    def second() -> None:
        with locks.acquire(run, "x", "second"):
            got.append(locks.holder_of(run, "x"))

    thread = in_thread(second)
    while locks._thread_locks[f"{run}/locks/x"].users < 2:
        time.sleep(0.001)
    held.release()
    thread.join(30)
    assert got == [f"pid {os.getpid()}, second"]


def test_a_thread_waits_for_a_bounded_time(run: str) -> None:
    errors: list[TryAgainError] = []

    def late() -> None:
        try:
            locks.acquire(run, "x", "second", wait=0.05)
        except TryAgainError as error:
            errors.append(error)

    with locks.acquire(run, "x", "first"):
        assert locks.attempt(run, "x", "nobody") is None
        in_thread(late).join()
        assert locks._thread_locks[f"{run}/locks/x"].users == 1
    assert [error.code for error in errors] == [11]
    assert f"held by pid {os.getpid()}, first" in errors[0].msg
    assert locks._thread_locks == {}


def test_another_thread_may_let_go(run: str) -> None:
    """As one does that brings a VF home behind the reply of another."""
    held = locks.acquire(run, "x", "first")
    in_thread(held.release).join()
    with locks.acquire(run, "x", "second", wait=0):
        pass
    assert (files(run), locks._thread_locks) == ([], {})


def test_a_lock_that_cannot_be_made_leaves_its_thread_lock_free(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.write_text("a file")
    for _ in range(2):
        with pytest.raises(FileError):
            locks.acquire(str(run), "x", "me", wait=0)
        with pytest.raises(FileError):
            locks.attempt(str(run), "x", "me")
    assert locks._thread_locks == {}
    run.unlink()
    with locks.acquire(str(run), "x", "me", wait=0):
        pass


def test_a_lock_of_another_process_leaves_the_thread_lock_free(run: str) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        locks.acquire(run, "x", "child")
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    while not (os.path.exists(f"{run}/locks/x") and "child" in locks.holder_of(run, "x")):
        time.sleep(0.001)
    assert locks.attempt(run, "x", "me") is None
    with pytest.raises(TryAgainError, match="child"):
        locks.acquire(run, "x", "me", wait=0.01)
    assert locks._thread_locks == {}
    os.close(writer)
    with locks.acquire(run, "x", "me"):
        pass
    os.waitpid(child, 0)


def test_threads_and_processes(run: str, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    context = multiprocessing.get_context("fork")
    crowd = [context.Process(target=hammer, args=(run, str(counter), 50)) for _ in range(3)]
    for one in crowd:
        one.start()
    threads = [in_thread(lambda: hammer(run, str(counter), 50)) for _ in range(5)]
    for each in [*threads, *crowd]:
        each.join()
    assert counter.read_text() == "400"
    assert (files(run), locks._thread_locks) == ([], {})
