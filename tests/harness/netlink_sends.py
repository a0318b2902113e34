"""Counts what a program asks the kernel over netlink, with strace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

# -yy: what a descriptor is open for; -v and -s: every message of a send must be shown.
STRACE = ("strace", "-f", "-yy", "-v", "-s", "65536", "-e", "trace=sendto,sendmsg")
_SEND = re.compile(r"(?P<pid>\d+) +send(to|msg)\(\d+<NETLINK:")


class Sends(NamedTuple):
    """Netlink traffic of one process: ``requests`` are sends, each with one or more ``messages``."""

    requests: int
    messages: int


def wrap(output: Path) -> tuple[str, ...]:
    """Return what goes before a command."""
    return (*STRACE, "-o", str(output))


def count(output: Path) -> list[Sends]:
    """Return the traffic of each process that sent over netlink, the first one to do so first."""
    found: dict[str, Sends] = {}
    for line in output.read_text().splitlines():
        if send := _SEND.match(line):
            before = found.get(send["pid"], Sends(0, 0))
            found[send["pid"]] = Sends(before.requests + 1, before.messages + line.count("{nlmsg_len="))
    return list(found.values())
