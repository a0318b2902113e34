"""Choose and order the injections; match faults against the list of accepted ones."""

from __future__ import annotations

import random
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from faults import calls
from faults.tracer import KILL, Fault, Seen

ACCEPTED = Path(__file__).with_name("accepted.toml")
# The start and the imports of the interpreter make some thousand calls: only every 40th gets injections.
EVERY_START = 40

# A polling loop repeats a call, and the number differs between runs: only the first 60 get injections.
MOST_ALIKE = 60
# Number of consecutive injections of one verb: between two that need an attached pod, it stays attached.
_BLOCK = 4


class Injection(NamedTuple):
    """One fault in one verb of one mode; ``about`` is the call's path or file."""

    mode: str
    verb: str
    fault: Fault
    about: str = ""

    def __str__(self) -> str:
        return f"{self.mode} {self.verb} {' '.join(map(str, self.fault))}"


def parsed(text: str) -> Injection:
    """Return the injection that a line of the report begins with."""
    mode, verb, call, ordinal, error = text.split()[:5]
    return Injection(mode, verb, Fault(call, int(ordinal), error.rstrip(":")))


def injections(mode: str, verb: str, seen: list[Seen]) -> list[Injection]:
    """Return the injections into recorded calls: each error of the call, and KILL."""
    found: list[Injection] = []
    times: Counter[tuple[str, str]] = Counter()
    for number, call in enumerate(seen):
        times[call.call, call.about] += 1
        if call.call in calls.LAST or times[call.call, call.about] > MOST_ALIKE:
            continue
        if mode == "started" and number % EVERY_START:
            continue
        about = re.sub(r"%2F\S*(?=%2Fipam)", "", call.about)
        about = re.sub(r"/(tmp|dev/shm)/\S*?/(run|ipam|tree|state)\b", r"\2", about)
        found += [
            Injection(mode, verb, Fault(call.call, call.ordinal, error), about)
            for error in (*call.errors, KILL)
        ]
    return found


def mixed(found: list[Injection], seed: int) -> list[Injection]:
    """Return the injections in random order, modes and verbs interleaved in blocks of ``_BLOCK``."""
    chance = random.Random(seed)
    kinds: dict[tuple[str, str], list[Injection]] = {}
    for item in found:
        kinds.setdefault((item.mode, item.verb), []).append(item)
    for items in kinds.values():
        chance.shuffle(items)
    longest = max((len(items) for items in kinds.values()), default=0)
    blocks = range(0, longest, _BLOCK)
    return [item for first in blocks for items in kinds.values() for item in items[first : first + _BLOCK]]


class Accepted:
    """The entries of accepted.toml; ``seen`` are the patterns that matched."""

    def __init__(self, path: Path = ACCEPTED) -> None:
        entries = tomllib.loads(path.read_text()).get("accepted", [])
        self.reasons = {entry["pattern"]: entry["reason"] for entry in entries}
        self.seen: set[str] = set()

    def covers(self, line: str) -> bool:
        """Return whether an entry matches a line of the report."""
        matching = [pattern for pattern in self.reasons if re.search(pattern, line)]
        self.seen.update(matching)
        return bool(matching)

    def unseen(self) -> list[str]:
        """Return the patterns that matched no line."""
        return [pattern for pattern in self.reasons if pattern not in self.seen]
