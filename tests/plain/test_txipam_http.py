"""The bytes of HTTP: whatever a peer sends, in whatever pieces, it is one reply or a clear refusal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriov_fast.ipam.http import Asked, Reader, Remote, Reply, TryError

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\n"
WHOLE = HEAD + b"Content-Length: 2\r\n\r\n{}"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;name=value\r\n{\r\n1\r\n}\r\n0\r\nX-Trailer: 1\r\n\r\n"


def source(octets: bytes, sizes: list[int] | None = None) -> Callable[[], bytes]:
    """Return what gives ``octets`` in pieces, then the end."""
    pieces, at = [], 0
    for size in sizes or []:
        pieces.append(octets[at : at + size])
        at += size
    pieces = [piece for piece in [*pieces, octets[at:]] if piece]
    return lambda: pieces.pop(0) if pieces else b""


def read(octets: bytes, method: str = "GET", sizes: list[int] | None = None) -> Reply:
    return Reader(source(octets, sizes)).reply(method)


@given(st.sampled_from([WHOLE, CHUNKED]), st.lists(st.integers(1, 40), max_size=60))
def test_any_pieces(octets: bytes, sizes: list[int]) -> None:
    found = read(octets, sizes=sizes)
    assert (found.status, found.body, found.media_type, found.kept) == (200, b"{}", "application/json", True)


@given(st.sampled_from([WHOLE, CHUNKED]), st.data())
def test_any_beginning_is_a_loss(octets: bytes, data: st.DataObject) -> None:
    end = data.draw(st.integers(0, len(octets) - 1))
    with pytest.raises(TryError) as caught:
        read(octets[:end])
    assert caught.value.again
    assert caught.value.sent
    assert "before its answer was complete" in caught.value.what


@given(st.binary(max_size=400))
def test_any_bytes_are_a_reply_or_a_refusal(octets: bytes) -> None:
    with suppress(TryError):
        assert 200 <= read(octets).status < 1000


@given(st.binary(max_size=200))
def test_any_bytes_behind_a_good_beginning(octets: bytes) -> None:
    with suppress(TryError):
        assert read(HEAD + octets).status == 200


@pytest.mark.parametrize(
    ("octets", "body", "kept"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
        (b"HTTP/1.1 204\r\nContent-Length: 5\r\n\r\n", b"", True),
        (b"HTTP/1.1 200 OK\nContent-Length: 2\n\n{}", b"{}", True),
        (HEAD + b"Connection: Close\r\nContent-Length: 2\r\n\r\n{}", b"{}", False),
        (HEAD + b"Connection: keep-alive, close\r\nContent-Length: 2\r\n\r\n{}", b"{}", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", b"{}", False),
        (HEAD + b"\r\nuntil the end", b"until the end", False),
        (WHOLE + b"HTTP/1.1 200 OK\r\n", b"{}", False),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + WHOLE, b"{}", True),
        (HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", b"{}", True),
    ],
)
def test_replies(octets: bytes, body: bytes, kept: bool) -> None:
    found = read(octets)
    assert (found.body, found.kept) == (body, kept)


@pytest.mark.parametrize(
    "octets",
    [
        b"\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 20x OK\r\n\r\n",
        b"HTTP/1.1 200OK\r\n\r\n",
        "HTTP/1.1 ٢٠٠ OK\r\n\r\n".encode(),
        HEAD + b": nameless\r\n\r\n",
        HEAD + b"Content-Length : 2\r\n\r\n{}",
        HEAD + b"Content-Length: +2\r\n\r\n{}",
        HEAD + b"Content-Length: 0x2\r\n\r\n{}",
        HEAD + b"Content-Length: \r\n\r\n{}",
        HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffffff\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"80000\r\n" + b"x" * 0x80000 + b"\r\n80001\r\n",
        HEAD + b"Content-Length: 1048577\r\n\r\n",
        HEAD + b"X: " + b"y" * 70000,
        b"HTTP/1.1 100 Continue\r\n" + b"X: y\r\n" * 20000,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 20000 + b"\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 10000 + WHOLE,
    ],
)
def test_refusals(octets: bytes) -> None:
    with pytest.raises(TryError) as caught:
        read(octets)
    assert not caught.value.again, caught.value.what
    assert caught.value.code == 112


def test_a_request() -> None:
    remote = Remote(url="https://[fd00::1]:1", host="fd00::1", port=1, prefix="/x")
    asked = Asked(method="POST", path="/v1/a", body=b"{}", fields={"Idempotency-Key": "k"})
    head, _, body = asked.octets(remote).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /x/v1/a HTTP/1.1"
    assert {"Host: [fd00::1]:1", "Content-Length: 2", "Idempotency-Key: k"} < set(lines)
    assert body == b"{}"
    bare = Asked(method="GET", path="/").octets(remote)
    assert b"Content-Length" not in bare
    assert bare.endswith(b"\r\n\r\n")
