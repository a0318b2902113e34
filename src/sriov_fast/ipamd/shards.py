"""Advisory per-process hints about shards: which are empty or in use. Wrong hints only cost time."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from sriov_fast.ipamd.pools import AddressSpace

TRIES = 8


class ShardHints:
    """The shards of this process that were empty, and those with a running transaction."""

    def __init__(self) -> None:
        self._empty: defaultdict[str, set[int]] = defaultdict(set)
        self._busy: Counter[tuple[str, int]] = Counter()

    def pick(self, space: AddressSpace, among: Collection[int] | None = None) -> int | None:
        """Return a random shard, unused if possible; None if all are believed to be empty."""
        dry = self._empty[space.ident]
        numbers = space.shards if among is None else tuple(among)
        if not numbers:
            return None
        for _ in range(TRIES):
            number = random.choice(numbers)
            if number not in dry and not self._busy[space.ident, number]:
                return number
        left = [number for number in numbers if number not in dry]
        return random.choice(left) if left else None

    def quiet(self, space: AddressSpace, numbers: Sequence[int]) -> int:
        """Return the first unused one of some shards."""
        return next((number for number in numbers if not self._busy[space.ident, number]), numbers[0])

    def learn(self, space: AddressSpace, fresh: Collection[int]) -> None:
        """Note the shards with unreserved addresses."""
        self._empty[space.ident] = set(space.shards).difference(fresh)

    def mark_empty(self, ident: str, number: int) -> None:
        """Note that a shard was empty."""
        self._empty[ident].add(number)

    def mark_available(self, ident: str, number: int) -> None:
        """Note that a shard has addresses again."""
        self._empty[ident].discard(number)

    @contextmanager
    def drawing(self, shards: Collection[tuple[str, int]]) -> Iterator[None]:
        """Mark shards (pool, number) as used, so that other requests of this process prefer others."""
        self._busy.update(shards)
        try:
            yield
        finally:
            self._busy.subtract(shards)
            for shard in shards:
                if not self._busy[shard]:
                    del self._busy[shard]

    def forget(self, idents: Collection[str]) -> None:
        """Keep the hints of these pools only."""
        for ident in [ident for ident in self._empty if ident not in idents]:
            del self._empty[ident]
