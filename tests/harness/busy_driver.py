"""A simulation of a busy driver: it replaces answers of the kernel, below ``DriverSocket``.

``prelude`` returns a statement for ``Node.prelude``. It replaces the backend's ``Socket`` and ``Batch`` in
the plugin's process. A refused request is not sent, except that of a move: as in the kernel, the device is
moved and renamed, and only "up" fails. The PF of the netns tier has no VFs, so this module answers set_vf.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sriov_fast.common.errors import NetlinkError
from sriov_fast.kernel import backend

TESTS = Path(__file__).parents[1]
REAL = backend.nl

_arguments: dict[bytes, dict[str, Any]] = {}  # the arguments of a ``set_link`` by its message
_left: dict[str, int] = {}  # refusals left by kind; "late": MACs that are accepted and lost
_errno = 0


def prelude(errno: int, **times: int) -> str:
    """Return a statement that makes the next requests fail with an errno.

    ``times`` has the number of requests for each kind: "up", "mac", "vf", "macvlan"; "late" is the number of
    MACs that are accepted and lost.
    """
    return (
        f"import sys; sys.path.append({str(TESTS)!r}); "
        f"from harness import busy_driver; busy_driver.install({errno}, {times!r})"
    )


def install(errno: int, times: dict[str, int]) -> None:
    global _errno
    _errno = errno
    _left.update(times)
    fake = SimpleNamespace(**vars(REAL))
    fake.Socket, fake.Batch = Socket, Batch
    backend.nl = fake  # type: ignore[assignment]


class Batch(REAL.Batch):
    """A batch that records the arguments of each ``set_link``."""

    def set_link(self, index: int, **given: Any) -> None:
        super().set_link(index, **given)
        _arguments[_bytes_of(self, len(self) - 1)] = {"index": index} | given


class Socket(REAL.Socket):
    """A socket with the answers of a busy driver; it sends each message separately."""

    def run(self, batch: Any, *, check: bool = True) -> list[Any]:
        answers = [self._answer(batch, position) for position in range(len(batch))]
        refused = next((answer for answer in answers if isinstance(answer, NetlinkError)), None)
        if refused and check:
            refused.results = answers
            raise refused
        return answers

    def _answer(self, batch: Any, position: int) -> Any:
        operation = batch.operations[position]
        given = _arguments.get(_bytes_of(batch, position), {})
        kind = "vf" if operation.startswith("set vf") else "mac" if given.get("mac") else ""
        kind = "up" if given.get("up") else kind
        kind = "macvlan" if "macvlan" in operation else kind
        if not _take(kind):
            if kind == "vf" or (kind == "mac" and _take("late")):
                return None
            return _numbered(super().run(batch.pick([position]), check=False)[0], position)
        if "netns_fd" in given:
            moving = REAL.Batch()
            moving.set_link(**given | {"up": None, "settings": None})
            super().run(moving)
        return NetlinkError(_errno, "", position, operation)


def _take(kind: str) -> bool:
    """Return whether a request of this kind must fail, and count the request."""
    _left[kind] = left = _left.get(kind, 0) - 1
    return left >= 0


def _numbered(answer: Any, position: int) -> Any:
    if isinstance(answer, NetlinkError):
        answer.position = position
    return answer


def _bytes_of(batch: Any, position: int) -> bytes:
    found: bytes = batch.pick([position]).tobytes()
    return found
