"""Locks: one holder at a time, even if files are removed, and a bounded wait that names the holder."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import pytest

from sriov_fast.common.errors import FileError, TryAgainError
from sriov_fast.vf import locks


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(tmp_path / "deep/run")


def files(run: str) -> list[str]:
    return sorted(os.listdir(f"{run}/locks"))


@contextmanager
def held_by_a_process(run: str) -> Iterator[int]:
    """Hold the lock x in another process; yield its pid."""
    ready, end = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end[1])
        held = locks.acquire(run, "x", "child")
        os.write(ready[1], b"!")
        os.read(end[0], 1)
        held.release()
        os._exit(0)
    os.read(ready[0], 1)
    try:
        yield child
    finally:
        os.close(end[1])
        os.waitpid(child, 0)
        for fd in (*ready, end[0]):
            os.close(fd)


@contextmanager
def held_by_a_thread(run: str) -> Iterator[int]:
    """Hold the lock x in this process, and release it in another thread; yield the pid."""
    held = locks.acquire(run, "x", "child")
    yield os.getpid()
    in_thread(held.release).join()


HOLDERS = pytest.mark.parametrize("hold", [held_by_a_process, held_by_a_thread])
Hold = Callable[[str], AbstractContextManager[int]]


@HOLDERS
def test_a_bounded_wait_names_the_holder(run: str, hold: Hold) -> None:
    with hold(run) as pid:
        assert locks.attempt(run, "x", "me") is None
        for wait in (0.0, 0.05):
            with pytest.raises(TryAgainError) as caught:
                locks.acquire(run, "x", "me", wait=wait)
            assert caught.value.code == 11
            words = f"the lock of x was not free within {wait:g} s: held by pid {pid}, child"
            assert caught.value.msg == words
            assert caught.value.details
    with locks.acquire(run, "x", "me", wait=0):
        assert locks.holder_of(run, "x") == f"pid {os.getpid()}, me"
    assert files(run) == []


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


def hammer(run: str, counter: str, rounds: int, *, clear: bool) -> None:
    for number in range(rounds):
        with locks.acquire(run, "x", f"hammer {os.getpid()}"):
            value = int(Path(counter).read_text())
            if clear and number % 10 == 0:
                shutil.rmtree(run)
            time.sleep(0)
            Path(counter).write_text(str(value + 1))


@pytest.mark.parametrize(("processes", "threads"), [(3, 5), (0, 8)])
def test_one_at_a_time(run: str, tmp_path: Path, processes: int, threads: int) -> None:
    """One holder at a time, although every release unlinks the file that others have open.

    The threads of one process exclude each other even if the directory is removed.
    """
    counter = tmp_path / "counter"
    counter.write_text("0")
    work = partial(hammer, run, str(counter), 25, clear=not processes)
    context = multiprocessing.get_context("fork")
    crowd = [context.Process(target=work) for _ in range(processes)]
    for one in crowd:
        one.start()
    for each in [*[in_thread(work) for _ in range(threads)], *crowd]:
        each.join()
    assert counter.read_text() == "200"
    assert files(run) == []


def test_a_holder_that_cannot_be_read(run: str) -> None:
    os.makedirs(f"{run}/locks/vf-x")
    assert locks.holder_of(run, "vf-x") == "an unknown process (Is a directory)"
