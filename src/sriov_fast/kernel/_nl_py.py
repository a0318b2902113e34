"""rtnetlink, plain: the same interface as ``_nl.pyx``, with pyroute2 and an ordinary socket.

``_nl.pyi`` declares the interface of both, and the compiled module's docstrings hold for both. Nothing else
in the package imports pyroute2: that takes longer than a whole ADD.
"""

from __future__ import annotations

import errno
import socket
import struct

from sriov_fast.common.errors import NetlinkError
from sriov_fast.kernel.netlink import arguments as args
from sriov_fast.kernel.netlink import constants as c
from sriov_fast.kernel.netlink.calls import (
    bpf,
    ethtool,
    inside,
    netns_read,
    netns_write,
    raw_socket,
    sysfs_mount,
)
from sriov_fast.kernel.netlink.messages import Batch, Message
from sriov_fast.kernel.netlink.replies import Replies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Self

    from sriov_fast.common.record import Link, Route

__all__ = [
    "Batch",
    "Replies",
    "Socket",
    "bpf",
    "ethtool",
    "netns_read",
    "netns_write",
    "raw_socket",
    "sysfs_mount",
]

RECEIVE_TIMEOUT = 30  # seconds without an answer
DUMP_TRIES = 10
ANSWER_SPACE = 2048  # bytes that one queued answer may take of the socket's receive buffer
VF_LIST_SPACE = 262144  # the same for an answer with a list of VFs
USUAL_SPACE = 131072  # receive buffer that every socket has


class Socket:
    """A rtnetlink socket, opened in the namespace that ``netns_fd`` refers to (-1: the thread's own)."""

    def __init__(self, netns_fd: int = -1) -> None:
        with inside(netns_fd):
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        for option in (c.NETLINK_EXT_ACK, c.NETLINK_CAP_ACK):
            self._try_option(c.SOL_NETLINK, option, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", RECEIVE_TIMEOUT, 0))
        self._socket.bind((0, 0))
        self._port: int = self._socket.getsockname()[0]
        self._next_seq = 1
        self._space = USUAL_SPACE
        self._buffer = bytearray(32768)

    def _try_option(self, level: int, option: int, value: int) -> bool:
        """Set an option that an older kernel may lack, or that needs a right; return whether it is set."""
        try:
            self._socket.setsockopt(level, option, value)
        except OSError:
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """Return the descriptor, -1 once closed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket; a second time does nothing."""
        self._socket.close()

    def run(self, batch: Batch, *, check: bool = True) -> list[object]:
        """Send the batch, wait for every answer, return one result for each message."""
        results = self._exchange(batch).results
        if not check:
            return results
        for item in results:
            if isinstance(item, NetlinkError):
                item.results = results
                raise item
        return results

    def links(self) -> list[Link]:
        """Return every device of the namespace as a ``Link``: ``ip link show``."""
        batch = Batch()
        batch._dump_links()
        return self._dump(batch)

    def addresses(self, index: int, *, flags: int = 0) -> list[str]:
        """Return the addresses of one device as "ip/prefix", both families: ``ip address show dev $if``."""
        batch = Batch()
        batch._dump_addresses(args.number(index, "index", 1, c.INT_MAX), args.number(flags, "flags", 0, 0xFF))
        return self._dump(batch)

    def addresses_by_index(self) -> dict[int, list[str]]:
        """Return the addresses of all devices by ifindex, read at once: ``ip address show``."""
        batch = Batch()
        batch._dump_addresses(c.ALL_DEVICES)
        found: dict[int, list[str]] = {}
        for index, cidr in self._dump(batch):
            found.setdefault(index, []).append(cidr)
        return found

    def routes(self, index: int) -> list[Route]:
        """Return the unicast routes out of one device, both families: ``ip route show table all dev $if``."""
        found: list[Route] = []
        for family in (socket.AF_INET, socket.AF_INET6):
            batch = Batch()
            batch._dump_routes(family, index)
            found += self._dump(batch)
        return found

    def _dump(self, batch: Batch) -> list[Any]:
        self._try_option(c.SOL_NETLINK, c.NETLINK_GET_STRICT_CHK, 1)
        for _ in range(DUMP_TRIES):
            replies = self._exchange(batch)
            if not replies.interrupted:
                (found,) = replies.results
                if isinstance(found, NetlinkError):
                    raise found
                assert isinstance(found, list)  # noqa: S101
                return found
        operation = batch.messages[0].operation
        raise NetlinkError(errno.EAGAIN, "", 0, f"{operation}: changed while read, {DUMP_TRIES} times")

    def _exchange(self, batch: Batch) -> Replies:
        replies = Replies(batch, self._next_seq, self._port)
        if not len(batch):
            return replies
        first = self._next_seq
        self._next_seq += len(batch)
        sent = 0
        for part in batch.parts():
            self._make_space(part)
            data = (message.numbered(first + at) for at, message in enumerate(part, sent))
            self._socket.sendto(b"".join(data), (0, 0))
            sent += len(part)
            while replies.pending > len(batch) - sent:
                self._receive(replies, batch)
        return replies

    def _make_space(self, part: list[Message]) -> None:
        # The kernel queues all answers before the send returns, and drops those that do not fit.
        wanted = sum(
            VF_LIST_SPACE if message.kind == c.RTM_GETLINK and message.vf >= 0 else ANSWER_SPACE
            for message in part
        )
        if wanted <= self._space or len(part) == 1:
            return
        size = min(wanted, c.INT_MAX // 2)
        if not self._try_option(socket.SOL_SOCKET, c.SO_RCVBUFFORCE, size):
            self._try_option(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        self._space = wanted

    def _receive(self, replies: Replies, batch: Batch) -> None:
        """Take one datagram of any size: the kernel tells the size first."""
        try:
            size = self._socket.recv_into(self._buffer, 1, socket.MSG_PEEK | socket.MSG_TRUNC)
            if size > len(self._buffer):
                self._buffer = bytearray(size)
            size, (sender, _) = self._socket.recvfrom_into(self._buffer, 0, socket.MSG_TRUNC)
        except BlockingIOError:
            position = replies.first_unanswered()
            operation = batch.messages[position].operation
            raise NetlinkError(
                errno.ETIMEDOUT, "", position, f"{operation}: no answer in {RECEIVE_TIMEOUT} seconds"
            ) from None
        replies.feed(bytes(self._buffer[:size]), sender=sender, truncated=size > len(self._buffer))
