"""The listening socket, and the connections whose request is not whole yet.

All threads of the server wait for both (epoll(7)). Each descriptor is armed for one event (EPOLLONESHOT), so
an event wakes one thread, and that thread alone has the connection. A client that does not send holds no
thread: its connection is kept here until the next byte comes or its time is over.
"""

from __future__ import annotations

import _socket
import _thread
import os
import select
import time

from sriov_fast.common import descriptors
from sriov_fast.server.protocol import Asked, BrokenRequestError, Incoming, peer_uid

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

MOST = 1000  # connections without a whole request
PATIENCE = 10.0  # seconds from accept(2) to the whole request
# While there are more silent connections than this, a thread does not even wait a moment for a new one.
_FEW = 16
_PAUSE = 0.05  # seconds, where no connection can be accepted
_ONCE = select.EPOLLIN | select.EPOLLONESHOT


class Connections:
    """Connections from ``accept`` until their request is whole."""

    def __init__(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._door = listener.fileno()
        self._unfinished: dict[int, Incoming] = {}
        self._lock = _thread.allocate_lock()
        self._epoll = select.epoll()
        self._end = os.eventfd(0)
        self._epoll.register(self._end, select.EPOLLIN)  # for good: its event wakes every thread
        self._epoll.register(self._door, _ONCE)

    def wait(self) -> int:
        """Wait for an event; return the descriptor that has it."""
        return self._epoll.poll(None, 1)[0][0]

    def take(self, event: int) -> tuple[Incoming, Asked] | None:
        """Read from the client of an event; return it when its request is whole, and keep it here otherwise.

        Raises BrokenRequestError where no request will come.
        """
        if event == self._end:
            return None
        is_new = event == self._door
        incoming = self._accepted() if is_new else self._claimed(event)
        if incoming is None:
            return None
        try:
            if is_new:
                _require_root(incoming)
            asked = incoming.read(patient=is_new and len(self._unfinished) < _FEW)
            if asked is not None:
                return incoming, asked
            self._keep(incoming, is_new=is_new)
        except BaseException:
            incoming.close()
            raise
        return None

    def _accepted(self) -> Incoming | None:
        """Accept a connection; OSError where there are no descriptors left: the client waits."""
        try:
            # not accept(), which makes enums and a socket of socket.py: a tenth of what VERSION takes
            fd = self._listener._accept()[0]  # type: ignore[attr-defined]
            return Incoming(_owned(fd))
        except (BlockingIOError, ConnectionAbortedError):
            return None
        except OSError:
            self._drop_one()
            time.sleep(_PAUSE)
            raise
        finally:
            self.listen()

    def listen(self) -> None:
        """Arm the listening socket for its next connection; harmless when repeated."""
        self._epoll.modify(self._door, _ONCE)

    def _claimed(self, fd: int) -> Incoming | None:
        with self._lock:
            return self._unfinished.pop(fd, None)

    def _keep(self, incoming: Incoming, *, is_new: bool) -> None:
        """Wait for more of a request, and for no more of them than can be."""
        if len(self._unfinished) >= MOST:
            self._drop_one()
        fd = incoming.connection.fileno()
        with self._lock:
            if is_new:
                self._epoll.register(fd, _ONCE)
            else:
                self._epoll.modify(fd, _ONCE)
            self._unfinished[fd] = incoming

    def _drop_one(self) -> None:
        """Close the connection that has been silent for longest; its client does the work itself."""
        with self._lock:
            for fd in self._unfinished:
                self._drop(fd)
                return

    def _drop(self, fd: int) -> None:
        incoming = self._unfinished.pop(fd)
        with incoming:
            self._epoll.unregister(fd)

    def expire(self, patience: float = PATIENCE) -> int:
        """Close the connections that have had their time; return how many there were."""
        begin = time.monotonic() - patience
        with self._lock:
            overdue = [fd for fd, incoming in self._unfinished.items() if incoming.since <= begin]
            for fd in overdue:
                self._drop(fd)
        return len(overdue)

    def stop(self) -> None:
        """Wake every thread that waits, now and from now on."""
        os.eventfd_write(self._end, 1)

    def close(self) -> None:
        """Close everything; no thread may wait here any more."""
        self.expire(0)
        self._epoll.close()
        descriptors.close(self._end)
        self._listener.close()


def _owned(fd: int) -> _socket.socket:
    try:
        return _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)
    except BaseException:
        descriptors.close(fd)
        raise


def _require_root(incoming: Incoming) -> None:
    if peer_uid(incoming.connection) not in (0, os.geteuid()):
        raise BrokenRequestError("the peer is not root")
