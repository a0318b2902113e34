"""A rtnetlink socket that repeats changes which a driver refuses for a moment.

A PF that changes a setting of a VF may reset the VF. Until the reset has ended, drivers (iavf, i40e, mlx5)
answer EBUSY or EAGAIN to other changes, and EADDRNOTAVAIL to "up" if the VF has no MAC yet.
"""

from __future__ import annotations

import errno
import time

from sriov_fast.common.errors import NetlinkError
from sriov_fast.common.interpreter import INTERPRETER
from sriov_fast.kernel.backend import nl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

BUSY = frozenset((errno.EBUSY, errno.EAGAIN, errno.EADDRNOTAVAIL))
LONGEST = 2.0  # seconds that a verb waits for drivers in all
_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 0.1
# The requests that are repeated. A move is not: the kernel moves the device before its driver refuses "up".
# A MAC is not: some drivers refuse it until the VF has been down (``attach.adopt_mac``).
_REPEATED = ("set link", "set vf")
# These also follow a repeated request again: their order matters.
_ORDERED = ("set link", "set mac", "get link")


class Patience:
    """The time that a verb has left to wait for drivers. ``ends`` is the verb's deadline (time.monotonic)."""

    def __init__(self, ends: float = float("inf")) -> None:
        self._ends = ends
        self._left = LONGEST

    def pauses(self) -> Iterator[None]:
        """Yield after each pause; the first takes 5 ms, each other one twice as long, up to 0.1 s."""
        began = time.monotonic()
        end = min(began + self._left, self._ends)
        pause = _FIRST_PAUSE
        try:
            while (left := end - time.monotonic()) > 0:
                with INTERPRETER.released():
                    time.sleep(min(pause, left))
                yield
                pause = min(2 * pause, _LONGEST_PAUSE)
        finally:
            self._left -= time.monotonic() - began


class DriverSocket(nl.Socket):
    """A rtnetlink socket that repeats the requests of a batch which a driver refuses for a moment.

    Nothing is sent twice if no driver refuses. ``patience`` is shared by the sockets of a verb.
    """

    patience: Patience

    def run(self, batch: nl.Batch, *, check: bool = True) -> list[Any]:
        """Run a batch as ``nl.Socket.run`` does, and its refused requests again."""
        with INTERPRETER.released():
            answers = super().run(batch, check=False)
        if _busy(answers) is not None:
            self._repeat(batch, answers)
        if check:
            for answer in answers:
                if isinstance(answer, NetlinkError):
                    answer.results = answers
                    raise answer
        return answers

    def _repeat(self, batch: nl.Batch, answers: list[Any]) -> None:
        tries, began = 1, time.monotonic()
        for _ in self.patience.pauses():
            refused = _busy(answers)
            if refused is None:
                return
            again = _again(batch, answers, refused.position)
            for position, answer in zip(again, super().run(batch.pick(again), check=False), strict=True):
                answers[position] = answer
                if isinstance(answer, NetlinkError):
                    answer.position = position
            tries += 1
        refused = _busy(answers)
        if refused is not None:
            name = errno.errorcode[refused.errno]
            refused.msg += f" ({name} to each of {tries} tries in {time.monotonic() - began:.1f} s)"


def _busy(answers: list[Any]) -> NetlinkError | None:
    """Return the first refusal of a driver that is busy."""
    for answer in answers:
        if (
            isinstance(answer, NetlinkError)
            and answer.errno in BUSY
            and answer.operation.startswith(_REPEATED)
        ):
            return answer
    return None


def _again(batch: nl.Batch, answers: list[Any], first: int) -> list[int]:
    """Return the positions from ``first`` on of failed requests, and of those that must follow them."""
    return [
        position
        for position in range(first, len(batch))
        if isinstance(answers[position], NetlinkError) or batch.operations[position].startswith(_ORDERED)
    ]


def connect(patience: Patience, netns_fd: int = -1) -> DriverSocket:
    """Open a socket in a namespace (-1: the thread's own)."""
    socket = DriverSocket(netns_fd)
    socket.patience = patience
    return socket
