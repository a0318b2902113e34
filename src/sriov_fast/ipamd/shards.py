"""What this process believes of lanes, so that its clients do not meet in one; never needed to be right."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence

from sriov_fast.ipamd.pools import Shape

TRIES = 8


class Hints:
    """Which lanes gave nothing lately, and which are being drawn from."""

    def __init__(self) -> None:
        self._dry: defaultdict[str, set[int]] = defaultdict(set)
        self._busy: Counter[tuple[str, int]] = Counter()

    def pick(self, shape: Shape, among: Collection[int] | None = None) -> int | None:
        """Return a lane at random, rather one that nobody here draws from; none if all are believed dry."""
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
        """Return the first of some lanes that nobody here draws from."""
        return next((number for number in numbers if not self._busy[shape.ident, number]), numbers[0])

    def learn(self, shape: Shape, fresh: Collection[int]) -> None:
        """Note which lanes have addresses that wait for no pod."""
        self._dry[shape.ident] = set(shape.lanes).difference(fresh)

    def dry(self, ident: str, number: int) -> None:
        """Note that a lane gave nothing."""
        self._dry[ident].add(number)

    def wet(self, ident: str, number: int) -> None:
        """Note that a lane has something again."""
        self._dry[ident].discard(number)

    def enter(self, ident: str, number: int) -> None:
        """Note that a lane is being drawn from."""
        self._busy[ident, number] += 1

    def leave(self, ident: str, number: int) -> None:
        """Note that it is not any more."""
        self._busy[ident, number] -= 1
        if self._busy[ident, number] <= 0:
            del self._busy[ident, number]

    def forget(self, idents: Collection[str]) -> None:
        """Keep only what concerns these pools."""
        for ident in [ident for ident in self._dry if ident not in idents]:
            del self._dry[ident]
