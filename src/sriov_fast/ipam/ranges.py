"""What host-local allocates from: ranges, sets of them, and the order in which addresses are tried.

Each set gives one address. Configuration, defaults, checks and order are those of containernetworking's
host-local, so that the two can take turns on one store.
"""

from __future__ import annotations

from sriov_fast.errors import ConfigError
from sriov_fast.ipam.keys import Keys, same_family, show_cidr, show_ip, wrong
from sriov_fast.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from sriov_fast.ipam.keys import Ip

    Arc = tuple[int, int, "Range"]
    RangeSet = tuple["Range", ...]

_BLOCK = 256


class Range(Value):
    """Addresses from ``start`` to ``end``, both inclusive, of a network with prefix ``length``.

    Addresses are numbers of ``bits`` bits. The gateway may be outside; it is never given away.
    """

    bits: int
    length: int
    start: int
    end: int
    gateway: int

    def __contains__(self, ip: Ip) -> bool:
        return ip[0] == self.bits and self.start <= ip[1] <= self.end

    def __str__(self) -> str:
        return f"{show_ip((self.bits, self.start))}-{show_ip((self.bits, self.end))}"

    def overlaps(self, other: Range) -> bool:
        """Say whether an address is in both."""
        return self.bits == other.bits and self.start <= other.end and other.start <= self.end


def show(ranges: RangeSet) -> str:
    """Return a set as an error message shows it."""
    return ",".join(map(str, ranges))


def find(ranges: RangeSet, ip: Ip) -> Range | None:
    """Return the range of the set that holds the address."""
    return next((item for item in ranges if ip in item), None)


# --- from the configuration


def read(keys: Keys) -> list[RangeSet]:
    """Return the sets as host-local numbers them: the runtime's, then the old keys', then the rest."""
    ipam = keys.inner("ipam")
    found = _sets(keys.inner("runtimeConfig"), "ipRanges")
    if ipam.obj.get("subnet") is not None:
        found.append((_range(ipam),))
    found += _sets(ipam, "ranges")
    if not found:
        raise ConfigError(
            "ipam.ranges is missing: there is nothing to allocate from",
            'give "ranges": [[{"subnet": "10.0.0.0/24"}]], or "subnet"',
        )
    _apart([(at, item) for at, ranges in enumerate(found) for item in ranges])
    return found


def _sets(keys: Keys, key: str) -> list[RangeSet]:
    return [_set(value, where) for where, value in keys.array(key)]


def _set(value: object, where: str) -> RangeSet:
    if not isinstance(value, list) or not value:
        raise wrong(where, value, "not a list of ranges", 'give a list such as [{"subnet": "10.0.0.0/24"}]')
    found = tuple(_range(Keys(item, f"{where}[{at}]")) for at, item in enumerate(value))
    if len({item.bits for item in found}) > 1:
        raise wrong(where, value, "IPv4 and IPv6 in one set", "give each its own set: [[{v4}], [{v6}]]")
    return found


def _apart(ranges: list[tuple[int, Range]]) -> None:
    """Raise where two ranges have an address in common."""
    for number, (first, one) in enumerate(ranges):
        for second, other in ranges[number + 1 :]:
            if one.overlaps(other):
                raise ConfigError(
                    f"ipam.ranges: {one} (set {first}) and {other} (set {second}) overlap",
                    "an address must be in one range only",
                )


def _range(keys: Keys) -> Range:
    (bits, network), length = keys.cidr("subnet")
    size = 1 << (bits - length)
    _check_subnet(keys, (bits, network), length)
    gateway = keys.ip("gateway")
    same_family(gateway, (bits, network), keys.place("gateway"))
    first, last = network, network + size - 1
    end = _within(keys, "rangeEnd", bits, first, last)
    if end is None:
        end = last - 1 if bits == 32 else last  # IPv4 keeps its broadcast address
    start = _within(keys, "rangeStart", bits, first, last)
    if start is None:
        start = network + 1
    if start > end:
        raise ConfigError(
            f"{keys.where}: {show_ip((bits, start))} to {show_ip((bits, end))} runs backwards",
            "give a rangeStart up to rangeEnd",
        )
    at = gateway[1] if gateway else network + 1
    return Range(bits=bits, length=length, start=start, end=end, gateway=at)


def _check_subnet(keys: Keys, subnet: Ip, length: int) -> None:
    bits, value = subnet
    where, text = keys.place("subnet"), keys.obj["subnet"]
    if length > bits - 2:
        raise wrong(where, text, "too small to allocate from", f"give a network up to /{bits - 2}")
    network = value >> (bits - length) << (bits - length)
    if network != value:
        advice = f"the network is {show_cidr((bits, network), length)}"
        raise wrong(where, text, "has host bits set", advice)


def _within(keys: Keys, key: str, bits: int, first: int, last: int) -> int | None:
    """Return a bound of the range, which must be in the network; None where it is not given."""
    ip = keys.ip(key)
    if ip is None:
        return None
    if ip[0] != bits or not first <= ip[1] <= last:
        advice = "give an address of the network, or leave the key out"
        raise wrong(keys.place(key), keys.obj[key], f"not in {keys.obj['subnet']}", advice)
    return ip[1]


# --- the order


def arcs(ranges: RangeSet, last: Ip | None) -> list[Arc]:
    """Return what to try, in order, as stretches (first, last, range): all of the set, once.

    That is round robin: from behind the address given last up to that address again, through all ranges.
    Without one, or where it is in no range any more, from the start.
    """
    at = next((at for at, item in enumerate(ranges) if last and last in item), None)
    if at is None or last is None:
        return [(item.start, item.end, item) for item in ranges]
    here, value = ranges[at], last[1]
    others = [(item.start, item.end, item) for item in (*ranges[at + 1 :], *ranges[:at])]
    ring = [(value + 1, here.end, here), *others, (here.start, value, here)]
    return [arc for arc in ring if arc[0] <= arc[1]]


def candidates(ring: list[Arc]) -> Iterator[tuple[Ip, Range]]:
    """Go through the addresses in order, passing over each range's own gateway."""
    for low, high, item in ring:
        value = low
        while value <= high:
            if value != item.gateway:
                yield (item.bits, value), item
            value += 1


def first_absent(ring: list[Arc], taken: set[str]) -> tuple[Ip, Range] | None:
    """Return the first address whose text is not among those taken."""
    for low, high, item in _blocks(ring):
        if not taken.issuperset(_texts(item.bits, low, high)):
            for found in candidates([(low, high, item)]):
                if show_ip(found[0]) not in taken:
                    return found
    return None


def _blocks(ring: list[Arc]) -> Iterator[Arc]:
    """Go through stretches that differ in their last octet only: set operations are fast on many texts."""
    for low, high, item in ring:
        at = low
        while at <= high:
            end = min(high, at | (_BLOCK - 1))
            yield at, end, item
            at = end + 1


def _texts(bits: int, low: int, end: int) -> list[str]:
    """Return the texts of a block's addresses."""
    if bits == 32:
        head = show_ip((bits, low)).rpartition(".")[0]
        return [f"{head}.{octet}" for octet in range(low & 255, (end & 255) + 1)]
    return [show_ip((bits, value)) for value in range(low, end + 1)]
