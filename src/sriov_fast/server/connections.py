"""The listening sockets, and the connections with incomplete requests.

All threads of the server wait for all of them (epoll(7)). Each descriptor is armed for one event
(EPOLLONESHOT), so an event wakes one thread, and only that thread uses the connection. A client that does not
send occupies no thread: its connection is kept here until the next byte arrives or its time limit is over.
"""

from __future__ import annotations

import _socket
import _thread
import os
import select
import time

from sriov_fast.common import descriptors
from sriov_fast.server.protocol import BrokenRequestError, Incoming, WireRequest, peer_uid

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from sriov_fast.server.workers import Channel

MOST = 1000  # connections with incomplete requests
PATIENCE = 10.0  # seconds from accept(2) to the complete request
# If more connections than this are incomplete, a thread does not wait for the first byte of a new one.
_FEW = 16
_PAUSE = 0.05  # seconds after accept(2) has failed
_ONCE = select.EPOLLIN | select.EPOLLONESHOT


class Connections:
    """Connections from accept(2) until their request is complete."""

    def __init__(self, *listeners: socket.socket | Channel) -> None:
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._incomplete: dict[int, Incoming] = {}
        self._lock = _thread.allocate_lock()
        self._epoll = select.epoll()
        self._end = os.eventfd(0)
        self._epoll.register(self._end, select.EPOLLIN)  # not one-shot: its event wakes every thread
        for fd, listener in self._listeners.items():
            listener.setblocking(False)
            self._epoll.register(fd, _ONCE)

    def wait(self) -> int:
        """Wait for an event; return its descriptor."""
        return self._epoll.poll(None, 1)[0][0]

    def is_new(self, event: int) -> bool:
        """Return whether an event stands for a new connection."""
        return event in self._listeners

    def pass_on(self, event: int, take: Callable[[int], None]) -> None:
        """Accept a new connection and call ``take`` with its descriptor, which is closed then."""
        fd = self._accept(event)
        if fd >= 0:
            try:
                take(fd)
            finally:
                descriptors.close(fd)

    def take(self, event: int) -> tuple[Incoming, WireRequest] | None:
        """Read from the client of an event; return client and request if complete, else keep the client here.

        Raises BrokenRequestError if the client sends no request.
        """
        if event == self._end:
            return None
        is_new = self.is_new(event)
        incoming = self._accepted(event) if is_new else self._claimed(event)
        if incoming is None:
            return None
        try:
            if is_new:
                _require_root(incoming)
            request = incoming.read(wait=is_new and len(self._incomplete) < _FEW)
            if request is not None:
                return incoming, request
            self._keep(incoming, is_new=is_new)
        except BaseException:
            incoming.close()
            raise
        return None

    def _accepted(self, listener_fd: int) -> Incoming | None:
        fd = self._accept(listener_fd)
        return Incoming(_owned(fd)) if fd >= 0 else None

    def _accept(self, listener_fd: int) -> int:
        """Return a new connection, -1 without one.

        Raises OSError if no descriptor is free: the client stays in the backlog.
        """
        try:
            # not accept(): the enums and the socket object of socket.py take a tenth of the time of a VERSION
            return int(self._listeners[listener_fd]._accept()[0])  # type: ignore[union-attr]
        except (BlockingIOError, ConnectionAbortedError):
            return -1
        except OSError:
            self._drop_oldest()
            time.sleep(_PAUSE)
            raise
        finally:
            self._epoll.modify(listener_fd, _ONCE)

    def listen(self) -> None:
        """Arm the listening sockets for their next connections; harmless when repeated."""
        for fd in self._listeners:
            self._epoll.modify(fd, _ONCE)

    def _claimed(self, fd: int) -> Incoming | None:
        with self._lock:
            return self._incomplete.pop(fd, None)

    def _keep(self, incoming: Incoming, *, is_new: bool) -> None:
        """Wait for the rest of a request; drop the oldest connection if there are too many."""
        if len(self._incomplete) >= MOST:
            self._drop_oldest()
        fd = incoming.connection.fileno()
        with self._lock:
            if is_new:
                self._epoll.register(fd, _ONCE)
            else:
                self._epoll.modify(fd, _ONCE)
            self._incomplete[fd] = incoming

    def _drop_oldest(self) -> None:
        """Close the connection that has been silent for longest; its client runs the plugin in-process."""
        with self._lock:
            for fd in self._incomplete:
                self._drop(fd)
                return

    def _drop(self, fd: int) -> None:
        incoming = self._incomplete.pop(fd)
        with incoming:
            self._epoll.unregister(fd)

    def expire(self, limit: float = PATIENCE) -> int:
        """Close the connections that exceed the time limit; return their number."""
        begin = time.monotonic() - limit
        with self._lock:
            overdue = [fd for fd, incoming in self._incomplete.items() if incoming.since <= begin]
            for fd in overdue:
                self._drop(fd)
        return len(overdue)

    def stop(self) -> None:
        """Wake every thread that waits now or later."""
        os.eventfd_write(self._end, 1)

    def close(self) -> None:
        """Close everything. No thread may call ``wait`` any more."""
        self.expire(0)
        self._epoll.close()
        descriptors.close(self._end)
        for listener in self._listeners.values():
            listener.close()


def _owned(fd: int) -> _socket.socket:
    try:
        return _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)
    except BaseException:
        descriptors.close(fd)
        raise


def _require_root(incoming: Incoming) -> None:
    if peer_uid(incoming.connection) not in (0, os.geteuid()):
        raise BrokenRequestError("the peer is not root")
