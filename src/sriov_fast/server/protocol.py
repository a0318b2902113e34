"""What goes over the server's socket; the client's half is ``client/sriov.c``.

A request is a header (magic, flags, size of the environment, size of stdin, token of 16 bytes), the
environment (``NAME=VALUE`` and a zero byte each) and stdin. With its first byte come, as ``flags`` say,
descriptors of the pod's namespace and of the client's stderr (unix(7), SCM_RIGHTS). The upper half of
``flags`` is the number of the client's CPU plus one, 0 where it does not say. A reply is a header
(magic, exit status, size, 0) and what goes to stdout. Numbers have 32 bits, in the machine's order.
"""

from __future__ import annotations

import _socket
import os
import stat
import struct
import time

from sriov_fast.common import descriptors
from sriov_fast.common.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

# ``_socket``: the constants of ``socket`` are enums, whose every use is a call in Python.

MAGIC = 0x31465253  # "SRF1"
NETNS, STDERR = 1, 2
REFUSED = -1  # the exit status that sends the client to do it itself
HEADER = struct.Struct("=IIII16s")
REPLY = struct.Struct("=IiII")
_CREDENTIALS = struct.Struct("=iII")  # struct ucred, unix(7)
_CHUNK = 1 << 15
_MOST = 20 << 20  # bytes: a configuration that is refused for its size, and an environment
_FD = struct.calcsize("i")
_CONTROL = _socket.CMSG_SPACE(4 * _FD)
_NO_WAIT = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_RIGHTS = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS)
# struct timeval, 20 ms: a client sends its request right after it has connected, so a thread waits for it.
_MOMENT = struct.pack("ll", 0, 20_000)
_TAKEN = 10.0  # seconds for the client to read a reply that is larger than the socket's buffer


class BrokenRequestError(Exception):
    """Who connected does not speak as our client does, or went away."""


class Asked(Record):
    """What one client asked; the descriptors, -1 for none, belong to its ``Incoming``."""

    environ: dict[str, str]
    stdin: bytes
    token: str
    netns_fd: int = -1
    stderr_fd: int = -1
    cpu: int = -1


class Incoming:
    """A connection with its request, as far as that has come; owns every descriptor that came with it."""

    __slots__ = ("_fds", "_found", "connection", "since")

    def __init__(self, connection: _socket.socket) -> None:
        self.connection = connection
        self.since = time.monotonic()
        self._found: bytes | bytearray = b""
        self._fds: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, *, patient: bool) -> Asked | None:
        """Read what the client has sent; return its request, None where that is not whole yet.

        With ``patient``, wait a moment for the first byte. Raises BrokenRequestError where no request will
        come.
        """
        try:
            if not self._found:
                self._begin(patient=patient)
            while missing := self._missing():
                chunk = self.connection.recv(min(missing, 1 << 20), _socket.MSG_DONTWAIT)
                self._found = bytearray(self._found) if type(self._found) is bytes else self._found
                self._found += _some(chunk)
            return self._asked()
        except BlockingIOError:
            return None
        except (OSError, struct.error, ValueError) as error:
            raise BrokenRequestError(str(error)) from error

    def _begin(self, *, patient: bool) -> None:
        """Read the first bytes, and the descriptors that come with them."""
        flags = _socket.MSG_CMSG_CLOEXEC | (0 if patient else _socket.MSG_DONTWAIT)
        if patient:
            self.connection.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVTIMEO, _MOMENT)
        found, control, flags, _ = self.connection.recvmsg(_CHUNK, _CONTROL, flags)
        for level, kind, data in control:
            if (level, kind) == _RIGHTS:
                self._fds.extend(memoryview(data)[: len(data) // _FD * _FD].cast("i"))
        if flags & _socket.MSG_CTRUNC:
            raise ValueError("more descriptors than there can be")
        self._found = _some(found)

    def _missing(self) -> int:
        """Return how many bytes are still to come, at least."""
        if len(self._found) < HEADER.size:
            return HEADER.size - len(self._found)
        magic, _, env_size, stdin_size, _ = HEADER.unpack_from(self._found)
        size: int = HEADER.size + env_size + stdin_size
        if magic != MAGIC or size - HEADER.size > _MOST:
            raise ValueError(f"no request: it begins with {bytes(self._found[:16])!r}")
        return max(0, size - len(self._found))

    def _asked(self) -> Asked:
        found = bytes(self._found)
        _, given, env_size, stdin_size, token = HEADER.unpack_from(found)
        announced = [bit for bit in (NETNS, STDERR) if given & bit]
        if len(self._fds) != len(announced):
            raise ValueError(f"{len(self._fds)} descriptors, and {len(announced)} were announced")
        passed = dict(zip(announced, self._fds, strict=True))
        end = HEADER.size + env_size
        return Asked(
            environ=_environ(found[HEADER.size : end]),
            stdin=found[end : end + stdin_size],
            token=token.hex(),
            netns_fd=passed.get(NETNS, -1),
            stderr_fd=passed.get(STDERR, -1),
            cpu=(given >> 16) - 1,
        )

    def open_log(self, fd: int) -> int:
        """Return a descriptor of the client's pipe to which a write never waits; -1 where there is none.

        A client that is stopped does not read. Writes to ``fd`` itself wait, which the plugins that we
        execute rely on.
        """
        if fd < 0:
            return -1
        try:
            if not stat.S_ISFIFO(os.fstat(fd).st_mode):
                return -1
            self._fds.append(os.open(f"/proc/self/fd/{fd}", _NO_WAIT))
        except OSError:
            return -1
        return self._fds[-1]

    def let_go(self, *fds: int) -> None:
        """Close some of the descriptors; harmless with -1."""
        for fd in fds:
            if fd in self._fds:
                self._fds.remove(fd)
                descriptors.close(fd)

    def close(self) -> None:
        """Close the connection and what came with it; harmless when repeated."""
        try:
            self.connection.close()
        finally:
            while self._fds:
                descriptors.close(self._fds.pop())


def _some(chunk: bytes) -> bytes:
    if not chunk:
        raise ValueError("the client went away")
    return chunk


def peer_uid(connection: _socket.socket) -> int:
    """Return who is at the other end (SO_PEERCRED)."""
    credentials = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])


def _environ(content: bytes) -> dict[str, str]:
    items = os.fsdecode(content).split("\0")[:-1]
    return {name: value for name, _, value in [item.partition("=") for item in items]}


def answer(connection: _socket.socket, status: int, output: bytes) -> None:
    """Send the reply; OSError where nobody takes it within a bounded time."""
    frame = REPLY.pack(MAGIC, status, len(output), 0) + output
    sent = connection.send(frame, _socket.MSG_DONTWAIT)
    if sent < len(frame):
        connection.settimeout(_TAKEN)  # of ``sendall``: for all that is left
        connection.sendall(memoryview(frame)[sent:])
