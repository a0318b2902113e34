"""IP addresses as texts and as bytes.

IPv4 is done here, because importing ``_socket``, of which no more than this is needed, takes as long as all
locks of an ADD together (0.25 ms; ``ipaddress`` 6 ms). IPv6 is the C library's, imported where there is some.
"""

from __future__ import annotations


def pack(text: str) -> bytes:
    """Return an address's 4 or 16 bytes, or raise ValueError; what is accepted is as in inet_pton(3)."""
    if ":" in text:
        from _socket import AF_INET6, inet_pton

        try:
            return inet_pton(AF_INET6, text)
        except OSError:
            raise ValueError(text) from None
    packed = bytes(map(int, text.split(".")))
    if len(packed) != 4 or unpack(packed) != text:  # int() takes " 1", "+1", "01" and "1_0", too
        raise ValueError(text)
    return packed


def unpack(packed: bytes) -> str:
    """Return the text of an address as inet_ntop(3) writes it."""
    if len(packed) == 16:
        from _socket import AF_INET6, inet_ntop

        return inet_ntop(AF_INET6, packed)
    return ".".join(map(str, packed))
