"""Addresses as bytes, compared with the results of the C library."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriov_fast.common import ip

octets = st.sampled_from(
    ["", "0", "00", "1", "01", "10", "255", "256", "-1", "+1", " 1", "1_0", "1e1", "٣", "\0"]
)
words = st.lists(octets | st.integers(0, 300).map(str), min_size=1, max_size=6).map(".".join)
sixes = st.ip_addresses(v=6).map(str) | st.text("0123456789abcdefA:.%/", min_size=1).map(
    lambda text: f":{text}"
)


def judged(text: str) -> bytes | None:
    """Return the bytes that the C library reads from a text; None if the text is no address."""
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        return socket.inet_pton(family, text)
    except (OSError, ValueError):
        return None


@given(words | sixes | st.ip_addresses(v=4).map(str) | st.text())
def test_packed_as_the_c_library_does(text: str) -> None:
    packed = judged(text)
    if packed is None:
        with pytest.raises(ValueError):  # noqa: PT011 (of any kind, as a caller catches it)
            ip.pack(text)
    else:
        assert ip.pack(text) == packed


@given(st.ip_addresses())
def test_there_and_back(address: object) -> None:
    text = str(address)
    assert ip.pack(ip.unpack(ip.pack(text))) == ip.pack(text)


@given(st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16))
def test_written_as_the_c_library_does(packed: bytes) -> None:
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    assert ip.unpack(packed) == socket.inet_ntop(family, packed)


@pytest.mark.parametrize(
    "text", ["", ".", "1.2.3", "1.2.3.4.5", "1.2.3.4 ", "1.2.3.4/24", "01.2.3.4", "9" * 9999]
)
def test_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        ip.pack(text)
