"""The protocol of the server's socket; ``client/sriov.c`` is the client.

A request is a header (magic, flags, size of the environment, size of stdin, token of 16 bytes), the
environment (``NAME=VALUE`` and a zero byte each) and stdin. The descriptors that ``flags`` announce, of the
pod's namespace and of the client's stderr, come with the first byte (unix(7), SCM_RIGHTS). The upper half of
``flags`` is the number of the client's CPU plus one, or 0. A reply is a header (magic, exit status, size, 0)
and the bytes for stdout. Numbers have 32 bits, in the machine's order.
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

# ``_socket``: the constants of ``socket`` are enums, and each use of an enum is a call in Python.

MAGIC = 0x31465253  # "SRF1"
NETNS, STDERR = 1, 2
REFUSED = -1  # the exit status that makes the client run the plugin in-process
HEADER = struct.Struct("=IIII16s")
REPLY = struct.Struct("=IiII")
_CREDENTIALS = struct.Struct("=iII")  # struct ucred, unix(7)
_CHUNK = 1 << 15
_MOST = 20 << 20  # bytes: environment and stdin; the plugin refuses such a configuration with an error
_FD = struct.calcsize("i")
_CONTROL = _socket.CMSG_SPACE(4 * _FD)
_NO_WAIT = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_RIGHTS = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS)
# struct timeval, 20 ms: a client sends its request right after it has connected, so a thread waits for it.
_FIRST_BYTE = struct.pack("ll", 0, 20_000)
_SEND_LIMIT = 10.0  # seconds for the client to read a reply that is larger than the socket's buffer


class BrokenRequestError(Exception):
    """The peer does not follow the protocol, or has disconnected."""


class WireRequest(Record):
    """The request of one client; its descriptors, -1 for none, belong to its ``Incoming``."""

    environ: dict[str, str]
    stdin: bytes
    token: str
    netns_fd: int = -1
    stderr_fd: int = -1
    cpu: int = -1


class Incoming:
    """A connection with the received part of its request; owns every descriptor that came with it."""

    __slots__ = ("_fds", "_received", "connection", "since")

    def __init__(self, connection: _socket.socket) -> None:
        self.connection = connection
        self.since = time.monotonic()
        self._received: bytes | bytearray = b""
        self._fds: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, *, wait: bool) -> WireRequest | None:
        """Read until the socket is empty; return the request, or None if it is incomplete.

        With ``wait``, wait up to 20 ms for the first byte. Raises BrokenRequestError if the client sends no
        request.
        """
        try:
            if not self._received:
                self._begin(wait=wait)
            while missing := self._missing():
                chunk = self.connection.recv(min(missing, 1 << 20), _socket.MSG_DONTWAIT)
                self._received = (
                    bytearray(self._received) if type(self._received) is bytes else self._received
                )
                self._received += _non_empty(chunk)
            return self._parsed()
        except BlockingIOError:
            return None
        except (OSError, struct.error, ValueError) as error:
            raise BrokenRequestError(str(error)) from error

    def _begin(self, *, wait: bool) -> None:
        """Read the first bytes and the descriptors that come with them."""
        flags = _socket.MSG_CMSG_CLOEXEC | (0 if wait else _socket.MSG_DONTWAIT)
        if wait:
            self.connection.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVTIMEO, _FIRST_BYTE)
        chunk, control, flags, _ = self.connection.recvmsg(_CHUNK, _CONTROL, flags)
        for level, message_type, data in control:
            if (level, message_type) == _RIGHTS:
                self._fds.extend(memoryview(data)[: len(data) // _FD * _FD].cast("i"))
        if flags & _socket.MSG_CTRUNC:
            raise ValueError("more descriptors than the protocol allows")
        self._received = _non_empty(chunk)

    def _missing(self) -> int:
        """Return the number of missing bytes, or of the header's if that is incomplete."""
        if len(self._received) < HEADER.size:
            return HEADER.size - len(self._received)
        magic, _, env_size, stdin_size, _ = HEADER.unpack_from(self._received)
        size: int = HEADER.size + env_size + stdin_size
        if magic != MAGIC or size - HEADER.size > _MOST:
            raise ValueError(f"no request: it begins with {bytes(self._received[:16])!r}")
        return max(0, size - len(self._received))

    def _parsed(self) -> WireRequest:
        content = bytes(self._received)
        _, flags, env_size, stdin_size, token = HEADER.unpack_from(content)
        announced = [bit for bit in (NETNS, STDERR) if flags & bit]
        if len(self._fds) != len(announced):
            raise ValueError(f"{len(self._fds)} descriptors, and {len(announced)} were announced")
        passed = dict(zip(announced, self._fds, strict=True))
        end = HEADER.size + env_size
        return WireRequest(
            environ=_environ(content[HEADER.size : end]),
            stdin=content[end : end + stdin_size],
            token=token.hex(),
            netns_fd=passed.get(NETNS, -1),
            stderr_fd=passed.get(STDERR, -1),
            cpu=(flags >> 16) - 1,
        )

    def open_log(self, fd: int) -> int:
        """Return a non-blocking descriptor of the client's pipe ``fd``, -1 if it is no pipe.

        A stopped client does not read its pipe. ``fd`` itself stays blocking: executed plugins write to it.
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

    def close_files(self, *fds: int) -> None:
        """Close these descriptors; -1 is ignored."""
        for fd in fds:
            if fd in self._fds:
                self._fds.remove(fd)
                descriptors.close(fd)

    def close(self) -> None:
        """Close the connection and its descriptors; harmless if repeated."""
        try:
            self.connection.close()
        finally:
            while self._fds:
                descriptors.close(self._fds.pop())


def _non_empty(chunk: bytes) -> bytes:
    if not chunk:
        raise ValueError("the client disconnected")
    return chunk


def peer_uid(connection: _socket.socket) -> int:
    """Return the user ID of the peer (SO_PEERCRED)."""
    credentials = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])


def _environ(content: bytes) -> dict[str, str]:
    """Return the variables as ``os.environ`` has them: of two with one name the first, none without "="."""
    items = os.fsdecode(content).split("\0")[:-1]
    pairs = [item.partition("=") for item in reversed(items)]
    return {name: value for name, equals, value in pairs if equals}


def answer(connection: _socket.socket, status: int, output: bytes) -> None:
    """Send the reply. Raises OSError if the client does not read it within a bounded time."""
    frame = REPLY.pack(MAGIC, status, len(output), 0) + output
    sent = connection.send(frame, _socket.MSG_DONTWAIT)
    if sent < len(frame):
        connection.settimeout(_SEND_LIMIT)  # of ``sendall``: for the whole rest
        connection.sendall(memoryview(frame)[sent:])
