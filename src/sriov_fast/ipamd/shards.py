"""Advisory per-process hints about shards: which are empty or in use. Wrong hints only cost time."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence

from sriov_fast.ipamd.pools import Shape

TRIES = 8


class Hints:
    """The shards of this process that were empty, and those with a running transaction."""

    def __init__(self) -> None:
        self._dry: defaultdict[str, set[int]] = defaultdict(set)
        self._busy: Counter[tuple[str, int]] = Counter()

    def pick(self, shape: Shape, among: Collection[int] | None = None) -> int | None:
        """Return a random shard, unused if possible; None if all are believed to be empty."""
        dry = self._dry[shape.ident]
        numbers = shape.lanes if among is None else tuple(among)
        if not numbers:
            return None
        for _ in range(TRIES):
            number = random.choice(numbers)
            if number not in dry and not self._busy[shape.ident, number]:
                return number
        left = [number for number in numbers if number not in dry]
        return random.choice(left) if left else None

    def quiet(self, shape: Shape, numbers: Sequence[int]) -> int:
        """Return the first unused one of some shards."""
        return next((number for number in numbers if not self._busy[shape.ident, number]), numbers[0])

    def learn(self, shape: Shape, fresh: Collection[int]) -> None:
        """Note the shards with unreserved addresses."""
        self._dry[shape.ident] = set(shape.lanes).difference(fresh)

    def dry(self, ident: str, number: int) -> None:
        """Note that a shard was empty."""
        self._dry[ident].add(number)

    def wet(self, ident: str, number: int) -> None:
        """Note that a shard has addresses again."""
        self._dry[ident].discard(number)

    def enter(self, ident: str, number: int) -> None:
        """Note the start of a transaction on a shard."""
        self._busy[ident, number] += 1

    def leave(self, ident: str, number: int) -> None:
        """Note the end of a transaction on a shard."""
        self._busy[ident, number] -= 1
        if self._busy[ident, number] <= 0:
            del self._busy[ident, number]

    def forget(self, idents: Collection[str]) -> None:
        """Keep the hints of these pools only."""
        for ident in [ident for ident in self._dry if ident not in idents]:
            del self._dry[ident]
