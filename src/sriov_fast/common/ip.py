"""Conversion of IP addresses between text and bytes.

IPv4 is converted in Python: an import of ``_socket`` takes as long as all locks of an ADD together (0.25 ms;
``ipaddress`` 6 ms). IPv6 is converted by the C library, which is imported only for IPv6.
"""

from __future__ import annotations


def pack(text: str) -> bytes:
    """Return the 4 or 16 bytes of an address. Raises ValueError for a text that inet_pton(3) rejects."""
    if ":" in text:
        from _socket import AF_INET6, inet_pton

        try:
            return inet_pton(AF_INET6, text)
        except OSError:
            raise ValueError(text) from None
    packed = bytes(map(int, text.split(".")))
    if len(packed) != 4 or unpack(packed) != text:  # int() also accepts " 1", "+1", "01" and "1_0"
        raise ValueError(text)
    return packed


def unpack(packed: bytes) -> str:
    """Return the text of an address as inet_ntop(3) writes it."""
    if len(packed) == 16:
        from _socket import AF_INET6, inet_ntop

        return inet_ntop(AF_INET6, packed)
    return ".".join(map(str, packed))
