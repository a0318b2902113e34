"""The process of one request: environment and stdin in, JSON on stdout and an exit status out."""

from __future__ import annotations

import errno
import gc
import os

from sriov_fast.common.errors import FileError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sriov_fast.common.trace import Steps
    from sriov_fast.plugin.context import Reply

_STDIN, _STDOUT, _STDERR = 0, 1, 2
# Bytes of stdin that are read; the decoder has a lower limit.
_MOST = 16 << 20


def main() -> None:
    """Run the plugin ``sriov``: serve one request and end the process; does not return."""
    serve(_answer)


def serve(answer: Callable[[bytes], Reply]) -> None:
    """Let ``answer`` serve one request, given its stdin, and end the process; does not return.

    ``os._exit`` is used because a regular exit of the interpreter takes longer than most requests.
    """
    gc.disable()  # a process of milliseconds has nothing to collect
    status, afterwards = 1, None
    try:
        _settle_streams()
        status, afterwards = _serve(answer)
        if afterwards is not None:
            behind_the_reply(afterwards) or afterwards()
    except BaseException as error:
        say(f"{type(error).__name__}: {error}")
    finally:
        os._exit(status)


def _settle_streams() -> None:
    """Replace a closed stdin or stderr by /dev/null, and refuse a closed stdout.

    Otherwise the next file that is opened would get its number, and with it the reply or a line of the log.
    """
    closed = [fd for fd in (_STDIN, _STDOUT, _STDERR) if not _is_open(fd)]
    for _ in closed:
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number: this one
    if _STDOUT in closed:
        raise OSError("stdout is closed: there is nowhere to put the result")


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError as error:
        return error.errno != errno.EBADF  # any other error says nothing about the descriptor
    return True


def say(words: str) -> None:
    """Write a line to stderr; an error is ignored."""
    try:
        os.write(_STDERR, f"sriov-fast: {words}\n".encode(errors="backslashreplace"))
    except OSError:
        pass


def behind_the_reply(work: Callable[[], None]) -> bool:
    """Run ``work`` in a child process, which has none of the caller's standard streams.

    Return False if no process can be started.
    """
    try:
        child = os.fork()
    except OSError as error:
        say(f"no process for what comes after the reply: {error.strerror}")
        return False
    if child:
        return True
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (_STDIN, _STDOUT, _STDERR):
            os.dup2(null, fd)
        work()
    finally:
        os._exit(0)


def _serve(answer: Callable[[bytes], Reply]) -> tuple[int, Callable[[], None] | None]:
    """Read the request, carry it out and print the reply; return exit status and the work after the reply."""
    stdin, done = b"", None
    try:
        stdin = _read_stdin() if _wants_stdin() else b""
        done = answer(stdin)
        output = done.output
    except Exception as error:
        output = _worded(error, stdin)
    delivered = _delivered(output)
    if done is None:
        return 1, None
    try:
        done.let_go()
    except OSError as error:  # the reply counts: the runtime has it
        say(f"not everything could be closed: {error}")
    if delivered:
        return 0, done.afterwards
    if done.undelivered:
        done.undelivered()
    return 1, None


def _answer(stdin: bytes) -> Reply:
    from sriov_fast.cni import request
    from sriov_fast.common import paths
    from sriov_fast.plugin.context import Context
    from sriov_fast.plugin.run import run

    context = Context(token=os.environ.get("SRIOV_FAST_TOKEN", ""), steps=_steps())
    asked = request.read(os.environ, stdin)
    try:
        return run(asked, paths.from_environment(), context)
    finally:
        if context.steps:
            context.steps.verb = asked.command
            context.steps.write()


def _steps() -> Steps | None:
    """Return the recorder of steps if ``SRIOV_FAST_TRACE`` names a file."""
    path = os.environ.get("SRIOV_FAST_TRACE")
    if not path:
        return None
    from sriov_fast.common.trace import Steps

    return Steps(path, "in-process")


def _worded(error: Exception, stdin: bytes) -> bytes:
    from sriov_fast.cni import response

    if response.is_internal(error):
        import traceback

        traceback.print_exception(error)
    return response.error(error, response.spoken_version(stdin))


def _wants_stdin() -> bool:
    """Return whether to read stdin: not for VERSION on a terminal."""
    return not (os.environ.get("CNI_COMMAND") in (None, "", "VERSION") and os.isatty(_STDIN))


def _read_stdin() -> bytes:
    chunks = []
    size = 0
    try:
        while chunk := _at_last(os.read, _STDIN, 1 << 16):
            chunks.append(chunk)
            size += len(chunk)
            if size > _MOST:
                break
    except OSError as error:
        raise FileError(
            f"stdin cannot be read: {error.strerror}",
            "give the network configuration on stdin",
            errno=error.errno or 0,
        ) from error
    return b"".join(chunks)


def _delivered(output: bytes) -> bool:
    """Print the reply; return whether that succeeded."""
    rest = memoryview(output)
    try:
        while rest:
            rest = rest[_at_last(os.write, _STDOUT, rest) :]
    except OSError as error:
        say(f"stdout: {error.strerror}")
        return False
    return True


def _at_last(call: Callable[[int, Any], Any], fd: int, argument: Any) -> Any:
    """Return ``call(fd, argument)``; wait if the caller has made the stream non-blocking."""
    while True:
        try:
            return call(fd, argument)
        except BlockingIOError:
            import select  # late: few callers do

            poller = select.poll()
            poller.register(fd, select.POLLIN if fd == _STDIN else select.POLLOUT)
            poller.poll()
