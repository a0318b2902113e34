"""Where host-local looks when the next addresses are all taken: by the store's map, by samples, by a listing.

Only a set whose addresses are nearly all taken, by others or before there was a map, comes to the listing:
that takes 40 ms with 60,000 files, the rest less than one. Nobody imports this who finds an address at once.
"""

from __future__ import annotations

import os
import time

from sriov_fast.ipam import ranges
from sriov_fast.ipam.keys import show_ip
from sriov_fast.ipam.store import BLOCK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from sriov_fast.ipam.keys import Ip
    from sriov_fast.ipam.ranges import Arc, Range
    from sriov_fast.ipam.store import Store

    Choice = tuple[Ip, Range]

# So many addresses that the map shows as free are tried; then it is no good.
HINTS = 64
# So many are tried here and there. Where one in fifty is free, one search in 180 finds none.
SAMPLES = 256
# 2**64 divided by the golden ratio: its multiples are spread evenly, whatever their number.
_GOLDEN = 0x9E3779B97F4A7C15
_U64 = (1 << 64) - 1
_LAST = (1 << BLOCK) - 1


def find(store: Store, ring: list[Arc], tried: int, mapped: bool) -> Choice | None:
    """Return a free address of the ring, None if there is none.

    The first ``tried`` of it are taken. What a listing shows is written to the map, if the set is ``mapped``.
    """
    search = Search(store, ring, tried)
    try:
        found = search.by_map() or search.by_samples()
        store.mark(search.taken, taken=True)
    finally:
        search.close()
    return found or _listed(store, ring, mapped)


class Search:
    """A ring of addresses, each at its place: 0 is that behind the one given last."""

    def __init__(self, store: Store, ring: list[Arc], tried: int) -> None:
        self.store = store
        self.ring = ring
        self.size = sum(high - low + 1 for low, high, _ in ring)
        self.tried = tried
        self.taken = [ip for ip, item in map(self.at, range(tried)) if ip[1] != item.gateway]
        self._fd = os.open(store.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the directory."""
        os.close(self._fd)

    def at(self, place: int) -> Choice:
        """Return the address at a place."""
        for low, high, item in self.ring:
            if place <= high - low:
                return (item.bits, low + place), item
            place -= high - low + 1
        raise IndexError(place)

    def is_free(self, choice: Choice) -> bool:
        """Look, and remember what is taken."""
        ip, item = choice
        if ip[1] == item.gateway:
            return False
        if os.access(show_ip(ip), os.F_OK, dir_fd=self._fd):  # a third faster than by its path
            self.taken.append(ip)
            return False
        return True

    def by_map(self) -> Choice | None:
        """Try in their order those that the map does not show as taken."""
        left = HINTS
        for choice in self._hinted():
            if self.is_free(choice):
                return choice
            left -= 1
            if not left:
                break
        return None

    def _hinted(self) -> Iterator[Choice]:
        skip = self.tried
        for low, high, item in self.ring:
            at, skip = low + skip, max(0, skip - (high - low + 1))
            while at <= high:
                end = min(high, at | _LAST)
                data = self.store.map_of((item.bits, at))
                for place in clear_bits(data, at & _LAST, end & _LAST):
                    yield (item.bits, (at & ~_LAST) + place), item
                at = end + 1

    def by_samples(self) -> Choice | None:
        """Try places all over the ring; return the beginning of the stretch that one is found in."""
        seed = time.monotonic_ns() * _GOLDEN
        for number in range(SAMPLES):
            place = (seed + number * _GOLDEN & _U64) * self.size >> 64
            if place >= self.tried and self.is_free(self.at(place)):
                return self._beginning(place)
        return None

    def _beginning(self, free: int) -> Choice:
        """Halve the way back to what is known to be taken: where that is one run, this is its end."""
        taken = self.tried - 1
        while free - taken > 1:
            middle = (free + taken) // 2
            if self.is_free(self.at(middle)):
                free = middle
            else:
                taken = middle
        return self.at(free)


def clear_bits(data: bytes, first: int, last: int) -> Iterator[int]:
    """Go through the bits from the first to the last, both inclusive, that are not set."""
    at = first
    while at <= last:
        if not data[at >> 3] >> (at & 7) & 1:
            yield at
        elif not at & 7:
            rest = data[at >> 3 :]
            at += (len(rest) - len(rest.lstrip(b"\xff"))) * 8 or 1
            continue
        at += 1


def _listed(store: Store, ring: list[Arc], mapped: bool) -> Choice | None:
    """Return the first free address by listing all that are taken; nothing else sees the last one."""
    names = store.names()
    if mapped:
        for low, high, item in ring:
            at = low
            while at <= high:
                end = min(high, at | _LAST)
                store.draw((item.bits, at), _bits(item.bits, at, end, names), end - at + 1)
                at = end + 1
    return ranges.first_absent(ring, names)


def _bits(bits: int, low: int, high: int, names: set[str]) -> int:
    """Return a number with a bit for each address, the lowest first, set where its file is there."""
    digits = []
    for texts in _texts(bits, low, high):
        is_full = names.issuperset(texts)  # the usual case, and a quick look
        digits.append("1" * len(texts) if is_full else "".join(["01"[text in names] for text in texts]))
    return int("".join(digits)[::-1], 2)


def _texts(bits: int, low: int, high: int) -> Iterator[list[str]]:
    """Return the addresses' texts, by blocks that differ in their last octet only."""
    octets = list(map(str, range(256)))
    for base in range(low & ~255, high + 1, 256):
        first, end = max(low, base), min(high + 1, base + 256)
        if bits == 32:
            head = show_ip((bits, base))[:-1]  # without its 0
            yield [head + octet for octet in octets[first - base : end - base]]
        else:
            yield [show_ip((bits, value)) for value in range(first, end)]
