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
import struct

from sriov_fast.values import Value

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
_RIGHTS = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS)
_PATIENCE = struct.pack("ll", 10, 0)  # struct timeval: the client has all it sends at hand


class BrokenRequestError(Exception):
    """Who connected does not speak as our client does, or went away."""


class Asked(Value):
    """What one client asked; the descriptors, -1 for none, are the receiver's to close."""

    environ: dict[str, str]
    stdin: bytes
    token: str
    netns_fd: int = -1
    stderr_fd: int = -1
    cpu: int = -1

    def close(self) -> None:
        """Close the namespace's descriptor."""
        if self.netns_fd >= 0:
            os.close(self.netns_fd)


def peer_uid(connection: _socket.socket) -> int:
    """Return who is at the other end (SO_PEERCRED)."""
    credentials = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])


def receive(connection: _socket.socket) -> Asked:
    """Read one request; BrokenRequestError where there is none, and no descriptor is left open then."""
    connection.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVTIMEO, _PATIENCE)
    fds: list[int] = []
    try:
        return _receive(connection, fds)
    except (OSError, struct.error, ValueError) as error:
        for fd in fds:
            os.close(fd)
        raise BrokenRequestError(str(error)) from error


def _receive(connection: _socket.socket, fds: list[int]) -> Asked:
    found, control, flags, _ = connection.recvmsg(_CHUNK, _CONTROL, _socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in control:
        if (level, kind) == _RIGHTS:
            fds.extend(memoryview(data)[: len(data) // _FD * _FD].cast("i"))
    if flags & _socket.MSG_CTRUNC:
        raise ValueError("more descriptors than there can be")
    if len(found) < HEADER.size:
        found = _filled(connection, found, HEADER.size)
    magic, given, env_size, stdin_size, token = HEADER.unpack_from(found)
    if magic != MAGIC or env_size + stdin_size > _MOST:
        raise ValueError(f"no request: it begins with {found[:16]!r}")
    announced = [bit for bit in (NETNS, STDERR) if given & bit]
    if len(fds) != len(announced):
        raise ValueError(f"{len(fds)} descriptors, and {len(announced)} were announced")
    passed = dict(zip(announced, fds, strict=True))
    end = HEADER.size + env_size + stdin_size
    if len(found) < end:
        found = _filled(connection, found, end)
    return Asked(
        environ=_environ(found[HEADER.size : HEADER.size + env_size]),
        stdin=found[HEADER.size + env_size : end],
        token=token.hex(),
        netns_fd=passed.get(NETNS, -1),
        stderr_fd=passed.get(STDERR, -1),
        cpu=(given >> 16) - 1,
    )


def _environ(content: bytes) -> dict[str, str]:
    items = os.fsdecode(content).split("\0")[:-1]
    return {name: value for name, _, value in [item.partition("=") for item in items]}


def _filled(connection: _socket.socket, first: bytes, size: int) -> bytes:
    """Read until there are ``size`` bytes."""
    found = bytearray(first)
    while len(found) < size:
        chunk = connection.recv(min(size - len(found), 1 << 20))
        if not chunk:
            raise ValueError("the client went away")
        found += chunk
    return bytes(found)


def answer(connection: _socket.socket, status: int, output: bytes) -> None:
    """Send the reply; OSError where nobody takes it."""
    connection.sendall(REPLY.pack(MAGIC, status, len(output), 0) + output)
