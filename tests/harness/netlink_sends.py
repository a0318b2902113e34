"""Counts what a program asks the kernel over netlink, with strace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

# -v and -s: every message of a send must be shown.
STRACE = ("strace", "-f", "-v", "-s", "65536", "-e", "trace=socket,sendto,sendmsg,close")

# "PID name(args) = result"; where another process comes between, the result is in a later line of its own.
_CALL = re.compile(r"(?P<pid>\d+) +(?:<\.\.\. )?(?P<name>\w+)(?P<how>\(| resumed>)(?P<rest>.*)")
_RESULT = re.compile(r"\) += (\d+)$")


class Sends(NamedTuple):
    """Netlink traffic of one process: ``requests`` are sends, each with one or more ``messages``."""

    requests: int
    messages: int


class _Trace:
    """What the lines so far have said."""

    def __init__(self) -> None:
        self.sockets: set[tuple[str, str]] = set()  # (pid, descriptor) of netlink
        self.opening: dict[str, str] = {}  # pid: the arguments of a socket() that has not returned
        self.found: dict[str, Sends] = {}

    def read(self, line: str) -> None:
        call = _CALL.match(line)
        if call is None:
            return
        pid, name, how, rest = call.group("pid", "name", "how", "rest")
        if name == "socket":
            self._socket(pid, rest if how == "(" else self.opening.get(pid, "") + rest)
        elif how == "(":
            self._used(pid, name, re.split(r"[,)]", rest, maxsplit=1)[0], rest)

    def _socket(self, pid: str, text: str) -> None:
        result = _RESULT.search(text)
        if result is None:
            self.opening[pid] = text
        elif text.startswith("AF_NETLINK,"):
            self.sockets.add((pid, result[1]))

    def _used(self, pid: str, name: str, fd: str, rest: str) -> None:
        if name == "close":
            self.sockets.discard((pid, fd))
        elif (pid, fd) in self.sockets:
            before = self.found.get(pid, Sends(0, 0))
            self.found[pid] = Sends(before.requests + 1, before.messages + rest.count("{nlmsg_len="))


def wrap(output: Path) -> tuple[str, ...]:
    """Return what goes before a command."""
    return (*STRACE, "-o", str(output))


def count(output: Path) -> list[Sends]:
    """Return the traffic of each process that sent over netlink, the first one to do so first."""
    trace = _Trace()
    for line in output.read_text().splitlines():
        trace.read(line)
    return list(trace.found.values())
