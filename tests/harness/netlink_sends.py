"""Count the netlink requests of a program with strace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

# -yy shows the protocol of a socket; -v and -s show every message of a send.
STRACE = ("strace", "-f", "-yy", "-v", "-s", "65536", "-e", "trace=sendto,sendmsg")
_SEND = re.compile(r"(?P<pid>\d+) +send(to|msg)\(\d+<NETLINK:")


class Sends(NamedTuple):
    """Netlink traffic of one process: ``requests`` are sends, each with one or more ``messages``."""

    requests: int
    messages: int


def wrap(output: Path) -> tuple[str, ...]:
    """Return the command prefix that records a program's sends."""
    return (*STRACE, "-o", str(output))


def count(output: Path) -> list[Sends]:
    """Return the traffic of each process that sent over netlink, in the order of their first sends."""
    found: dict[str, Sends] = {}
    for line in output.read_text().splitlines():
        if send := _SEND.match(line):
            before = found.get(send["pid"], Sends(0, 0))
            found[send["pid"]] = Sends(before.requests + 1, before.messages + line.count("{nlmsg_len="))
    return list(found.values())
