"""The process of one verb: its streams, its exit status, and the work after the reply."""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from contextlib import ExitStack

import pytest

from sriov_fast.plugin import process
from sriov_fast.plugin.context import Reply


@pytest.mark.parametrize("raises", [False, True])
def test_behind_the_reply(raises: bool) -> None:
    """The caller continues at once, and the work after the reply holds none of its streams open."""
    reader, writer = os.pipe()
    done, mark = os.pipe()
    middle = os.fork()
    if middle == 0:
        signal.alarm(60)
        os.dup2(writer, 1)
        os.close(writer)
        os.close(reader)

        def work() -> None:
            time.sleep(0.3)
            os.write(mark, b"!")
            if raises:
                raise ValueError("nobody hears it")

        process.behind_the_reply(work)
        os._exit(7)
    os.close(writer)
    os.close(mark)
    assert os.waitstatus_to_exitcode(os.waitpid(middle, 0)[1]) == 7
    assert os.read(reader, 1) == b"", "the end of stdout, which the work has not kept"
    assert not select.select([done], [], [], 0)[0], "the work is not done yet"
    assert os.read(done, 2) == b"!"
    assert os.read(done, 1) == b"", "its process has ended"
    for fd in (reader, done):
        os.close(fd)


def test_streams_that_do_not_block() -> None:
    """Streams may be non-blocking: stdin is written later, and the result is larger than the pipe."""
    stdin, theirs = os.pipe()
    ours, stdout = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        for fd, stream in ((stdin, 0), (stdout, 1)):
            os.set_blocking(fd, False)
            os.dup2(fd, stream)
        os.close(theirs)
        process.serve(lambda given: Reply(output=given * 100_000))
    os.close(stdin)
    os.close(stdout)
    time.sleep(0.2)
    os.write(theirs, b"{}")
    os.close(theirs)
    time.sleep(0.2)
    with open(ours, "rb") as output:
        assert output.read() == b"{}" * 100_000
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_only_ebadf_means_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A descriptor counts as open if fstat(2) fails with another error than EBADF."""

    def refuse(fd: int) -> None:
        raise OSError(errno.EBADF if fd == 77 else errno.ENOMEM, "refused")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", refuse)
        found = [process._is_open(fd) for fd in (77, 1)]
    assert found == [False, True]


@pytest.mark.parametrize("delivered", [True, False])
def test_what_cannot_be_closed_changes_no_reply(monkeypatch: pytest.MonkeyPatch, delivered: bool) -> None:
    """The exit status depends on the delivery of the reply alone, not on a failing close after it."""

    def refuse() -> None:
        raise OSError(errno.EIO, "refused")

    with ExitStack() as held:
        held.callback(refuse)
        taken_back: list[bool] = []
        done = Reply(output=b"{}", held=held.pop_all(), undelivered=lambda: taken_back.append(True))
        monkeypatch.setattr(process, "_wants_stdin", lambda: False)
        monkeypatch.setattr(process, "_delivered", lambda _: delivered)
        assert process._serve(lambda _: done) == (0 if delivered else 1, None)
    assert taken_back == [True] * (not delivered)
