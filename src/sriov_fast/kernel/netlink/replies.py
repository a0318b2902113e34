"""The answers to a batch, checked message by message."""

from __future__ import annotations

import errno
import struct

from sriov_fast.common.errors import NetlinkError
from sriov_fast.kernel.netlink import constants as c
from sriov_fast.kernel.netlink.attributes import aligned, attributes, text
from sriov_fast.kernel.netlink.links import decode_link
from sriov_fast.kernel.netlink.routes import decode_address, decode_routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sriov_fast.kernel.netlink.messages import Batch

_UNANSWERED = object()


class Replies:
    """The answers to a batch that was sent with sequence numbers from ``first`` on.

    ``port`` is the port id of the socket that sent it. ``feed`` takes one datagram and checks every message
    in it. ``pending`` counts the messages without an answer, ``results`` has one entry for each message.
    """

    def __init__(self, batch: Batch, first: int, port: int) -> None:
        self._messages = batch.messages
        self._first = first
        self._port = port
        self._found: list[Any] = [_UNANSWERED] * len(batch)
        self.pending = len(batch)
        self.interrupted = False

    @property
    def results(self) -> list[object]:
        """A list: ``Link``, ``NetlinkError`` or, for an ACK and for a missing answer, None."""
        return [None if item is _UNANSWERED else item for item in self._found]

    def feed(self, datagram: bytes, *, sender: int = 0, truncated: bool = False) -> None:
        """Take one datagram from port id ``sender``.

        Raises NetlinkError (EPROTO, EMSGSIZE, ENOBUFS) for one that the kernel cannot have sent.
        """
        if sender != 0:
            return  # from another process; only the kernel answers
        if truncated:
            raise NetlinkError(errno.EMSGSIZE, "", 0, "rtnetlink answer is truncated")
        while datagram:
            left = len(datagram)
            size = c.HEADER.unpack_from(datagram)[0] if left >= c.HEADER.size else 0
            if size < c.HEADER.size or size > left:
                raise _broken(f"with a broken header, {left} bytes left")
            if self._is_mine(datagram):
                self._take(datagram[:size])
            datagram = datagram[aligned(size) :]

    def first_unanswered(self) -> int:
        """Return the position of the first message without an answer."""
        return next((i for i, item in enumerate(self._found) if item is _UNANSWERED), len(self._found) - 1)

    def _is_mine(self, data: bytes) -> bool:
        # A lower sequence number belongs to a request that was given up; a higher one was never sent.
        _, _, _, seq, port = c.HEADER.unpack_from(data)
        if port != self._port:
            raise _broken(f"to port {port}, not {self._port}")
        ahead: int = (seq - self._first) & 0xFFFFFFFF
        if len(self._found) <= ahead <= c.INT_MAX:
            raise _broken(f"to request {seq}, never sent")
        return ahead < len(self._found)

    def _take(self, data: bytes) -> None:
        _, kind, flags, seq, _ = c.HEADER.unpack_from(data)
        position = (seq - self._first) & 0xFFFFFFFF
        asked = self._messages[position]
        if asked.is_dump and flags & c.NLM_F_DUMP_INTR:
            self.interrupted = True
        if kind == c.NLMSG_NOOP:
            return
        if kind == c.NLMSG_OVERRUN:
            raise NetlinkError(errno.ENOBUFS, "", position, "rtnetlink answers were lost")
        if kind == c.NLMSG_ERROR or (asked.is_dump and kind == c.NLMSG_DONE):
            self._take_verdict(data, kind, position)
        elif kind != asked.kind - 2 or asked.flags & c.NLM_F_ACK:  # RTM_NEWx answers RTM_GETx
            raise _broken(f"of unexpected type {kind}", position)
        else:
            self._take_data(data, kind, position)

    def _take_verdict(self, data: bytes, kind: int, position: int) -> None:
        # NLMSG_ERROR (also as an ACK) and NLMSG_DONE begin with an int: 0 or a negative errno.
        if len(data) < c.HEADER.size + (4 + c.HEADER.size if kind == c.NLMSG_ERROR else 4):
            raise NetlinkError(errno.EPROTO, "", position, "rtnetlink verdict is too short")
        (error,) = struct.unpack_from("=i", data, c.HEADER.size)
        if error:
            asked = self._messages[position]
            refused = NetlinkError(-error, _extack(data), position, asked.operation)
            refused.vf = asked.vf
            self._found[position] = refused
        elif self._found[position] is _UNANSWERED:
            self._found[position] = None if kind == c.NLMSG_ERROR else []
        self.pending -= 1

    def _take_data(self, data: bytes, kind: int, position: int) -> None:
        asked = self._messages[position]
        size = len(data) - c.HEADER.size
        if size < c.BODY_SIZES[kind]:
            raise _broken(f"with a body of {size} bytes", position)
        if not asked.is_dump:
            self._found[position] = decode_link(data, asked.vf, asked.mac)
            self.pending -= 1
            return
        if self._found[position] is _UNANSWERED:
            self._found[position] = []
        if kind == c.RTM_NEWLINK:
            self._found[position].append(decode_link(data, -1))
        elif kind == c.RTM_NEWADDR:
            self._found[position] += decode_address(data, asked.index, asked.wanted)
        else:
            self._found[position] += decode_routes(data, asked.family, asked.index)


def _broken(what: str, position: int = 0) -> NetlinkError:
    return NetlinkError(errno.EPROTO, "", position, f"rtnetlink answer {what}")


def _extack(data: bytes) -> str:
    """Return the kernel's message, NLMSGERR_ATTR_MSG, which follows the repeated request."""
    _, kind, flags, _, _ = c.HEADER.unpack_from(data)
    if not flags & c.NLM_F_ACK_TLVS:
        return ""
    at = c.HEADER.size + 4
    if kind == c.NLMSG_ERROR:
        (request,) = struct.unpack_from("=I", data, at)
        at += c.HEADER.size if flags & c.NLM_F_CAPPED else aligned(request)
    for attr, start, end in attributes(data, at, len(data)):
        if attr == c.NLMSGERR_ATTR_MSG:
            return text(data[start + c.ATTR.size : end])
    return ""
