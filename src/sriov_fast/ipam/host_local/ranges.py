"""The ranges of host-local, read from the configuration, and the order in which their addresses are given.

Each range set gives one address. Keys, defaults, checks and order are those of containernetworking's
host-local, so that both can work on one store.
"""

from __future__ import annotations

from sriov_fast.common.errors import ConfigError
from sriov_fast.common.record import Record
from sriov_fast.ipam.keys import Keys, same_family, show_cidr, show_ip, wrong

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from sriov_fast.ipam.keys import Ip

    RangeSet = tuple["Range", ...]
    ReservedVf = tuple[Ip, "Range"]


class Range(Record):
    """The addresses from ``start`` to ``end``, both inclusive, of a network with prefix ``length``.

    Addresses are numbers of ``bits`` bits. The gateway may be outside the range; it is never given.
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
        """Say whether the two ranges have an address in common."""
        return self.bits == other.bits and self.start <= other.end and other.start <= self.end


def show(ranges: RangeSet) -> str:
    """Return a range set as an error message shows it."""
    return ",".join(map(str, ranges))


def find(ranges: RangeSet, ip: Ip) -> Range | None:
    """Return the range of the set that contains the address; None if there is none."""
    return next((item for item in ranges if ip in item), None)


def candidates(ranges: RangeSet, last: Ip | None) -> Iterator[ReservedVf]:
    """Go once through all addresses of a set, gateways left out.

    The order is a round robin: it begins after ``last``, the address given last, and ends with it. Without
    it, or if it is in none of the ranges, the order begins with the first address.
    """
    at = next((at for at, item in enumerate(ranges) if last and last in item), None)
    if at is None or last is None:
        spans = [(item.start, item.end, item) for item in ranges]
    else:
        here = ranges[at]
        others = [(item.start, item.end, item) for item in (*ranges[at + 1 :], *ranges[:at])]
        spans = [(last[1] + 1, here.end, here), *others, (here.start, last[1], here)]
    for first, end, item in spans:
        for value in range(first, end + 1):
            if value != item.gateway:
                yield (item.bits, value), item


def read(keys: Keys) -> list[RangeSet]:
    """Return the range sets in host-local's order: ``ipRanges`` of the runtime, ``subnet``, ``ranges``."""
    ipam = keys.inner("ipam")
    found = _sets(keys.inner("runtimeConfig"), "ipRanges")
    if ipam.get("subnet") is not None:
        found.append((_range(ipam),))
    found += _sets(ipam, "ranges")
    if not found:
        raise ConfigError(
            "ipam.ranges is missing: there is nothing to allocate from",
            'give "ranges": [[{"subnet": "10.0.0.0/24"}]], or "subnet"',
        )
    _demand_disjoint([(number, item) for number, ranges in enumerate(found) for item in ranges])
    return found


def _sets(keys: Keys, key: str) -> list[RangeSet]:
    return [_set(value, where) for where, value in keys.items(key)]


def _set(value: object, where: str) -> RangeSet:
    if not isinstance(value, list) or not value:
        raise wrong(where, value, "not a list of ranges", 'give a list such as [{"subnet": "10.0.0.0/24"}]')
    found = tuple(_range(Keys(item, f"{where}[{at}].")) for at, item in enumerate(value))
    if len({item.bits for item in found}) > 1:
        raise wrong(where, value, "IPv4 and IPv6 in one set", "give each its own set: [[{v4}], [{v6}]]")
    return found


def _demand_disjoint(ranges: list[tuple[int, Range]]) -> None:
    """Raise ConfigError if two ranges have an address in common; the numbers are those of their sets."""
    for position, (first, one) in enumerate(ranges):
        for second, other in ranges[position + 1 :]:
            if one.overlaps(other):
                raise ConfigError(
                    f"ipam.ranges: {one} (set {first}) and {other} (set {second}) overlap",
                    "an address must be in one range only",
                )


def _range(keys: Keys) -> Range:
    (bits, network), length = _subnet(keys)
    last = network + (1 << bits - length) - 1
    whole = Range(bits=bits, length=length, start=network, end=last, gateway=0)
    start, end = _bound(keys, "rangeStart", whole), _bound(keys, "rangeEnd", whole)
    gateway = keys.ip("gateway")
    same_family(gateway, (bits, network), keys.place("gateway"))
    if end is None:
        end = last - 1 if bits == 32 else last  # the broadcast address of IPv4 is not given
    if start is None:
        start = network + 1
    if start > end:
        raise ConfigError(
            f"{keys.where}: {show_ip((bits, start))} to {show_ip((bits, end))} runs backwards",
            "give a rangeStart up to rangeEnd",
        )
    return whole.replace(start=start, end=end, gateway=gateway[1] if gateway else network + 1)


def _subnet(keys: Keys) -> tuple[Ip, int]:
    """Return the network's address and its prefix length; host bits are an error."""
    (bits, value), length = keys.cidr("subnet")
    where, text = keys.place("subnet"), keys.get("subnet")
    if length > bits - 2:
        raise wrong(where, text, "too small to allocate from", f"give a network up to /{bits - 2}")
    network = value >> (bits - length) << (bits - length)
    if network != value:
        raise wrong(where, text, "has host bits set", f"the network is {show_cidr((bits, network), length)}")
    return (bits, network), length


def _bound(keys: Keys, key: str, network: Range) -> int | None:
    """Return an end of the range, which must be in the network; None if it is not given."""
    ip = keys.ip(key)
    if ip is None:
        return None
    if ip not in network:
        advice = "give an address of the network, or leave the key out"
        raise wrong(keys.place(key), keys.get(key), f"not in {keys.get('subnet')}", advice)
    return ip[1]
