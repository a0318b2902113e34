"""The frames on the server's socket: complete requests, and invalid input."""

from __future__ import annotations

import _socket
import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.descriptors import open_files
from sriov_fast.server import protocol
from sriov_fast.server.protocol import NETNS, STDERR, BrokenRequestError, Incoming, WireRequest

HEADER = struct.Struct("=IIII16s")  # the same as in client/sriov.c
MAGIC = int.from_bytes(b"SRF1", "little")
TOKEN = bytes(range(16))
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """The client's and the server's end of a connection."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def whole(environ: bytes = b"", stdin: bytes = b"", flags: int = 0, magic: int = MAGIC) -> bytes:
    return HEADER.pack(magic, flags, len(environ), len(stdin), TOKEN) + environ + stdin


class Received:
    """A complete request at the server's end; ``with`` closes its descriptors and no others."""

    def __init__(self, server: socket.socket) -> None:
        self._incoming = Incoming(_socket.socket(fileno=os.dup(server.fileno())))

    def __enter__(self) -> WireRequest:
        try:
            while (asked := self._incoming.read(wait=True)) is None:
                select.select([self._incoming.connection], [], [], 10)
        except BaseException:
            self._incoming.close()
            raise
        return asked

    def __exit__(self, *_: object) -> None:
        self._incoming.close()


def is_same(left: int, right: int) -> bool:
    return os.path.samestat(os.fstat(left), os.fstat(right))


@pytest.mark.parametrize(
    ("environ", "stdin"),
    [
        ({}, b""),
        ({b"CNI_COMMAND": b"ADD", b"A": b"b=c", b"EMPTY": b""}, b'{"x": "\0"}'),
        ({b"A": b"\xff\xc3\xb6", b"\xfe": b"1"}, b""),
    ],
)
def test_a_request(pair: Pair, environ: dict[bytes, bytes], stdin: bytes) -> None:
    client, server = pair
    client.sendall(whole(b"".join(b"%b=%b\0" % variable for variable in environ.items()), stdin))
    with Received(server) as asked:
        assert {os.fsencode(name): os.fsencode(value) for name, value in asked.environ.items()} == environ
        assert (asked.stdin, asked.token) == (stdin, TOKEN.hex())
        assert (asked.netns_fd, asked.stderr_fd) == (-1, -1)


def test_the_environment_is_that_of_a_process(pair: Pair) -> None:
    client, server = pair
    client.sendall(whole(b"CNI_COMMAND=ADD\0NONE\0CNI_COMMAND=DEL\0=x\0CNI_COMMAND\0"))
    with Received(server) as asked:
        assert asked.environ == {"CNI_COMMAND": "ADD", "": "x"}


@pytest.mark.parametrize("flags", [0, NETNS, STDERR, NETNS | STDERR])
def test_descriptors(pair: Pair, flags: int) -> None:
    client, server = pair
    with open("/proc/self/ns/net", "rb") as netns, open(os.devnull, "rb") as stderr:
        given = {NETNS: netns.fileno(), STDERR: stderr.fileno()}
        before = open_files()
        socket.send_fds(client, [whole(flags=flags)], [fd for bit, fd in given.items() if flags & bit])
        with Received(server) as asked:
            found = {NETNS: asked.netns_fd, STDERR: asked.stderr_fd}
            for bit, fd in found.items():
                assert (fd >= 0) is bool(flags & bit)
                if fd >= 0:
                    assert is_same(fd, given[bit])
                    assert not os.get_inheritable(fd), "a delegate must not get it"
        assert open_files() == before


@pytest.mark.parametrize("number", [-1, 0, 1, 4095])
def test_the_clients_cpu(pair: Pair, number: int) -> None:
    client, server = pair
    client.sendall(whole(flags=(number + 1) << 16))
    with Received(server) as asked:
        assert (asked.cpu, asked.netns_fd, asked.stderr_fd) == (number, -1, -1)


def test_in_many_pieces(pair: Pair) -> None:
    """A request in many pieces is complete; its descriptors arrive with the first byte."""
    client, server = pair
    content = whole(b"A=b\0" * 3000, b"x" * 70000, flags=STDERR)

    def trickle() -> None:
        socket.send_fds(client, [content[:1]], [2])
        for start in range(1, 40):
            client.sendall(content[start : start + 1])
        client.sendall(content[40:])

    sender = threading.Thread(target=trickle)
    sender.start()
    with Received(server) as asked:
        sender.join()
        assert (asked.environ, asked.stdin) == ({"A": "b"}, b"x" * 70000)
        assert is_same(asked.stderr_fd, 2)


def test_the_largest_that_a_client_sends(pair: Pair) -> None:
    client, server = pair
    stdin = (16 << 20) + (64 << 10)
    content = whole(b"A=" + b"x" * (2 << 20) + b"\0", b"y" * stdin)
    sender = threading.Thread(target=client.sendall, args=(content,))
    sender.start()
    with Received(server) as asked:
        sender.join()
        assert (len(asked.environ["A"]), len(asked.stdin)) == (2 << 20, stdin)


BROKEN = {
    "nothing": b"",
    "half a header": whole()[:20],
    "another magic": whole(magic=MAGIC + 1),
    "the other byte order": whole(magic=int.from_bytes(b"SRF1", "big")),
    "half an environment": whole(b"A=b\0")[:-2],
    "half of stdin": whole(b"A=b\0", b"{}")[:-1],
    "HTTP": b"GET /index.html HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "too large": HEADER.pack(MAGIC, 0, 1, 20 << 20, TOKEN) + b"x" * 1000,
    "larger than a number": HEADER.pack(MAGIC, 0, 0xFFFFFFFF, 0xFFFFFFFF, TOKEN),
    "descriptors announced": whole(flags=NETNS | STDERR),
}


def assert_broken(pair: Pair, content: bytes, files: int, match: str | None = None) -> None:
    """Check that a request is refused, and that all of its descriptors are closed."""
    client, server = pair
    before = open_files()
    if content:
        socket.send_fds(client, [content], [2] * files)
    client.shutdown(socket.SHUT_WR)
    with pytest.raises(BrokenRequestError, match=match), Received(server):
        pass
    assert open_files() == before


@pytest.mark.parametrize("files", [0, 1, 3, 4])
@pytest.mark.parametrize("content", BROKEN.values(), ids=list(BROKEN))
def test_what_is_no_request(pair: Pair, content: bytes, files: int) -> None:
    assert_broken(pair, content, files)


@pytest.mark.parametrize(
    ("flags", "files"), [(0, 1), (NETNS, 2), (STDERR, 0), (3, 1), (3, 3), (0, 4), (1, 200)]
)
def test_other_descriptors_than_announced(pair: Pair, flags: int, files: int) -> None:
    assert_broken(pair, whole(flags=flags), files, "descriptors")


def test_a_client_that_says_nothing(pair: Pair) -> None:
    """An incomplete request does not block the thread; the received bytes are kept."""
    client, server = pair
    content = whole(b"A=b\0" * 3000)
    with Incoming(_socket.socket(fileno=os.dup(server.fileno()))) as incoming:
        begin = time.monotonic()
        assert incoming.read(wait=True) is None
        for start in range(0, len(content) - 500, 500):
            client.sendall(content[start : start + 500])
            assert incoming.read(wait=False) is None
        assert time.monotonic() - begin < 10
        client.sendall(content[-(len(content) % 500 or 500) :])
        asked = incoming.read(wait=False)
        assert asked
        assert asked.environ == {"A": "b"}


@given(content=st.binary(max_size=200), files=st.integers(0, 3), magic=st.booleans())
def test_any_bytes(content: bytes, files: int, magic: bool) -> None:
    """Any bytes are a request or raise BrokenRequestError, without a leaked descriptor."""
    client, server = socket.socketpair()
    with client, server:
        before = open_files()
        content = b"SRF1" + content if magic else content
        if content:
            socket.send_fds(client, [content], [2] * files)
        client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(BrokenRequestError), Received(server):
            pass
        assert open_files() == before


def test_who_is_at_the_other_end(pair: Pair) -> None:
    assert protocol.peer_uid(pair[1]) == os.geteuid()


@pytest.mark.parametrize(
    ("status", "output"), [(0, b""), (1, b"{}"), (0, b"x" * 300000), (protocol.REFUSED, b"")]
)
def test_a_reply(pair: Pair, status: int, output: bytes) -> None:
    client, server = pair
    sender = threading.Thread(target=protocol.answer, args=(server, status, output))
    sender.start()
    with client.makefile("rb") as stream:
        magic, its_status, size, reserved = struct.unpack("=IiII", stream.read(16))
        assert stream.read(size) == output
    sender.join()
    assert (magic, its_status, reserved) == (MAGIC, status, 0)


def test_a_reply_that_nobody_reads(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply that is larger than the socket's buffer blocks its thread for a limited time."""
    monkeypatch.setattr(protocol, "_SEND_LIMIT", 0.2)
    with pytest.raises(OSError, match="timed out"):
        protocol.answer(pair[1], 0, b"x" * (8 << 20))


def test_a_reply_that_nobody_takes(pair: Pair) -> None:
    client, server = pair
    client.shutdown(socket.SHUT_RDWR)  # also closes copies in processes that are being started
    client.close()
    with pytest.raises(OSError, match=r"pipe|reset"):
        protocol.answer(server, 0, b"x")


def test_a_close_that_fails_loses_no_descriptor(late_error: None) -> None:
    ours, theirs = socket.socketpair()
    incoming = protocol.Incoming(ours)
    incoming._fds += [os.dup(ours.fileno()), os.dup(ours.fileno()), os.dup(ours.fileno())]
    received = list(incoming._fds)
    with theirs, incoming:
        incoming.close_files(received[0])
    for fd in received:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
