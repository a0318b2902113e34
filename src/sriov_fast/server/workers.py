"""Worker processes of the server, which serve requests while its own threads wait for the interpreter.

CPython runs Python code of one thread at a time, so one process uses one CPU for it, however many requests
come. Each worker is a fork with threads of its own, and shares nothing but the journal and its locks. The
server accepts all connections and passes some on. A channel, a pair of sockets, connects both: the server
sends connections (unix(7), SCM_RIGHTS) and asks for the worker's counts; its end makes the worker stop.
"""

from __future__ import annotations

import _thread
import mmap
import os
import signal
import socket
import sys

from sriov_fast.common import json
from sriov_fast.common.errors import SriovError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from sriov_fast.server.counts import Counts

_CONNECTION, _COUNTS = b"connection", b"counts "  # messages of the server; the second has a number
_RECEIVED, _RUNNING = 0, 1  # places in the memory that both share, of 8 bytes each
_CONTROL = socket.CMSG_SPACE(4)  # of one descriptor
_LARGEST = 1 << 17  # bytes of a worker's counts
_PATIENCE = 1.0  # seconds for a worker to send its counts


class Worker:
    """A worker as the server sees it."""

    def __init__(self, pid: int, channel: socket.socket, shared: memoryview) -> None:
        self.pid = pid
        self._channel = channel
        self._shared = shared
        self._passed = 0
        self._lock = _thread.allocate_lock()
        self._asked = 0
        self._counts: dict[str, Any] = {}
        channel.settimeout(_PATIENCE)

    def running(self) -> int:
        """Return the number of requests that the worker serves."""
        return int(self._shared[_RUNNING])

    def load(self) -> int:
        """Return the number of requests that the worker serves or has not received yet."""
        return self._passed - int(self._shared[_RECEIVED]) + self.running()

    def take(self, connection: int) -> None:
        """Pass a connection on; the caller closes its descriptor. Raises OSError if the worker has ended."""
        with self._lock:
            socket.send_fds(self._channel, [_CONNECTION], [connection])
            self._passed += 1

    def counts(self) -> dict[str, Any]:
        """Return the worker's counts (``Counts.plain``), the last known ones if it does not answer."""
        self._asked += 1
        try:
            self._channel.send(b"%s%d" % (_COUNTS, self._asked))
            while self._counts.get("asked") != self._asked:  # an earlier answer may have come late
                self._counts = json.loads(self._channel.recv(_LARGEST), "counts")
        except (OSError, SriovError):
            pass
        return self._counts

    def has_ended(self) -> bool:
        """Return whether the process has ended; not to be called again then."""
        ended = self._is_reaped(os.WNOHANG)
        if ended:
            self._shared[_RUNNING] = 0
        return ended

    def stop(self) -> None:
        """Have the worker end when its requests are served."""
        self._channel.close()

    def join(self) -> None:
        """Wait for the end of the worker."""
        self._is_reaped(0)

    def _is_reaped(self, flags: int) -> bool:
        try:
            return os.waitpid(self.pid, flags)[0] != 0
        except ChildProcessError:  # the kernel has reaped it, since the server's parent ignores SIGCHLD
            return True


class Channel:
    """A worker's end of its channel, which takes the place of a listening socket.

    It is also a context manager for each request, which counts the running ones.
    """

    def __init__(self, channel: socket.socket, shared: memoryview) -> None:
        self.counts: Counts | None = None
        self._channel = channel
        self._shared = shared
        self._lock = _thread.allocate_lock()
        self.fileno = channel.fileno
        self.setblocking = channel.setblocking
        self.close = channel.close

    def _accept(self) -> tuple[int]:
        """Return the next connection; BlockingIOError if there is none."""
        # not recv_fds(): it ignores its flags
        message, control, _, _ = self._channel.recvmsg(64, _CONTROL, socket.MSG_CMSG_CLOEXEC)
        if message == _CONNECTION:
            with self._lock:
                self._shared[_RECEIVED] += 1
            if control:  # none if no descriptor is free; the client's connection is closed then
                return (memoryview(control[0][2]).cast("i")[0],)
        if message.startswith(_COUNTS) and self.counts:
            asked = int(message.removeprefix(_COUNTS))
            self._channel.send(json.dumps(self.counts.plain() | {"asked": asked}))
        if not message:  # the server has ended
            os.kill(os.getpid(), signal.SIGTERM)
        raise BlockingIOError

    def __enter__(self) -> None:
        with self._lock:
            self._shared[_RUNNING] += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._shared[_RUNNING] -= 1


def start(number: int, serve: Callable[[Channel], None], unused: Sequence[socket.socket]) -> list[Worker]:
    """Fork workers, each of which calls ``serve`` and ends; call it before any thread is started.

    ``unused`` are sockets of the server that the workers close.
    """
    workers: list[Worker] = []
    ends = list(unused)
    for _ in range(number):
        shared = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ends.append(ours)
        pid = os.fork()
        if not pid:
            _work(Channel(theirs, shared), serve, ends)
        theirs.close()
        workers.append(Worker(pid, ours, shared))
    return workers


def _work(channel: Channel, serve: Callable[[Channel], None], unused: Sequence[socket.socket]) -> None:
    """Be a worker."""
    status = 1
    try:
        for end in unused:
            end.close()
        serve(channel)
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)
