"""``host-local`` in-process: addresses from ranges on this node, for one plugin's exec less.

Configuration, results and store are those of containernetworking's plugin, and both may be in use at the same
time. All sets of a request are settled before the first address is taken, under one hold of the lock.
"""

from __future__ import annotations

import os
import stat

from sriov_fast import cni_args
from sriov_fast.errors import BusyError, CheckError, ConfigError, IpamError, UnavailableError, is_absent
from sriov_fast.ipam import ranges
from sriov_fast.ipam.builtin import Builtin, read_routes, valid_attachments
from sriov_fast.ipam.keys import as_ip_or_cidr, parse_ip, show_ip
from sriov_fast.ipam.store import Store, index_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sriov_fast.ipam.keys import Ip
    from sriov_fast.ipam.ranges import Range, RangeSet

    Choice = tuple[Ip, Range]

# So many addresses are tried one by one before the search asks the map; of a small set, all.
PROBES = 8
SMALL = 512
# Sets with more addresses have no map of those that are taken: they are never so full that one is needed.
_HUGE = 1 << 22
# Somebody who takes addresses without the lock may come between as often.
_ATTEMPTS = 10
_LARGEST_RESOLVER = 1 << 16  # bytes
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


class HostLocal(Builtin):
    """Addresses from the ranges of the configuration, kept in a store on disk."""

    kind = "host-local"

    @property
    def owner(self) -> tuple[str, str]:
        """Who has the addresses: container ID and ifname."""
        return self.container_id.strip(), self.ifname

    def add(self) -> dict[str, Any]:
        """Give one address of each range set."""
        sets = ranges.read(self.keys)
        self.one_each([item[0].bits for item in sets])
        wishes = _pair(sets, self._wishes())
        ipam = self.keys.inner("ipam")
        routes = read_routes(ipam)
        dns = resolver(ipam.text("resolvConf"))
        with self._store() as store:
            given = self._give(store, sets, wishes)
        return self.result([(ip, item.length, (ip[0], item.gateway)) for ip, item in given], routes, dns)

    def delete(self) -> None:
        """Free what this container's interface has."""
        if self._is_there():
            with self._store() as store:
                store.release(self.owner)

    def check(self) -> None:
        """Raise unless the container's interface has an address, whichever."""
        if self._is_there():
            with self._store() as store:
                if store.owned(self.owner):
                    return
        raise CheckError(
            f"container {self.container_id} has no address for {self.ifname} in {self._path()}",
            "it was never given, or was freed since; delete the pod and start it anew",
        )

    def status(self) -> None:
        """Raise where the configuration or the store's directory cannot serve an ADD.

        A full range is no reason: to the runtime that would be a node without a network.
        """
        ranges.read(self.keys)
        read_routes(self.keys.inner("ipam"))
        there = self._path()
        while not _is_directory(there) and there not in ("/", ""):
            there = os.path.dirname(there)
        if not os.access(there or ".", os.W_OK | os.X_OK):
            raise UnavailableError(
                f"ipam.dataDir: {there} cannot be written to", "host-local keeps its addresses there"
            )

    def collect(self) -> None:
        """Free what no valid attachment has."""
        valid = valid_attachments(self.keys)
        if self._is_there():
            with self._store() as store:
                store.keep_only(valid)

    # --- the store

    def _path(self) -> str:
        name = self.keys.text("name")
        if not name[:1].isalnum() or not _NAME.issuperset(name):
            raise ConfigError(
                f"name = {name!r}: no name of a network",
                "use a letter or digit first, then letters, digits, '_', '.' and '-'",
            )
        directory = self.keys.inner("ipam").text("dataDir")
        if directory:
            from sriov_fast import files  # late: most networks have the default

            files.demand("ipam.dataDir", directory)
            files.directory("ipam.dataDir", f"{directory}/{name}")
        return os.path.normpath(f"{directory or self.networks}/{name}")

    def _is_there(self) -> bool:
        """Whether there is a store: where there is none, nothing is freed, and none is made for that."""
        return _is_directory(self._path())

    def _store(self) -> Store:
        path = self._path()
        return Store(path, index_of(self.runtime_dir, path))

    # --- choosing

    def _wishes(self) -> dict[str, Ip]:
        """Return the addresses that are asked for, by their texts."""
        asked = cni_args.readable(self.args).get("IP", "")
        found = [("CNI_ARGS IP", text) for text in asked.split(",") if asked]
        ips = [as_ip_or_cidr(value, where) for where, value in [*found, *self.requested()]]
        return {show_ip(ip): ip for ip in ips}

    def _give(self, store: Store, sets: list[RangeSet], wishes: list[Ip | None]) -> list[Choice]:
        """Choose, take, and write down where the round robins stand."""
        given = self._take(store, sets, wishes)
        try:
            for number, (ip, _) in enumerate(given):
                store.remember(number, show_ip(ip))
        except OSError:
            store.give_back(self.owner, [show_ip(ip) for ip, _ in given])
            raise
        return given

    def _take(self, store: Store, sets: list[RangeSet], wishes: list[Ip | None]) -> list[Choice]:
        self._refuse_second(store, sets, wishes)
        for _ in range(_ATTEMPTS):
            plan = [
                _wished(store, item, wish) if wish else _next(store, number, item)
                for number, (item, wish) in enumerate(zip(sets, wishes, strict=True))
            ]
            try:
                store.reserve(self.owner, [show_ip(ip) for ip, _ in plan])
            except FileExistsError:
                continue
            large = [ip for (ip, _), item in zip(plan, sets, strict=True) if _has_map(item)]
            store.mark(large, taken=True, make=True)
            return plan
        raise IpamError(
            f"{store.path}: addresses are taken by somebody who does not take the lock",
            "see who else writes there; try again",
            code=11,
        )

    def _refuse_second(self, store: Store, sets: list[RangeSet], wishes: list[Ip | None]) -> None:
        """Refuse a second address for the same interface, unless it is one that was asked for."""
        for address in store.owned(self.owner, thorough=False):
            ip = parse_ip(address)
            for item, wish in zip(sets, wishes, strict=True):
                if not wish and ranges.find(item, ip):
                    raise IpamError(
                        f"{self.ifname} of container {self.container_id} has {address} already",
                        "DEL it first",
                        code=BusyError.code,
                    )


def _pair(sets: list[RangeSet], wishes: dict[str, Ip]) -> list[Ip | None]:
    """Return for each set the address that is asked for of it. Every wish must find its set."""
    found: list[Ip | None] = []
    rest = dict(wishes)
    for item in sets:
        text = next((text for text, ip in rest.items() if ranges.find(item, ip)), None)
        found.append(rest.pop(text) if text else None)
    if rest:
        raise ConfigError(
            f"requested addresses {', '.join(rest)}: in no range set, or a second one of the same set",
            f"range sets: {'; '.join(map(ranges.show, sets))}; each gives one address",
        )
    return found


def _wished(store: Store, item: RangeSet, ip: Ip) -> Choice:
    """Return the address that is asked for, if it is free."""
    text = show_ip(ip)
    there = ranges.find(item, ip)
    if there is None or ip[1] == there.gateway:
        raise ConfigError(f"requested address {text}: it is the gateway", "ask for another")
    if store.is_taken(text):
        raise IpamError(
            f"requested address {text} is taken, in {store.path}", "ask for another", code=BusyError.code
        )
    return ip, there


def _next(store: Store, number: int, item: RangeSet) -> Choice:
    """Return the next free address of a set."""
    try:
        last = parse_ip(store.last_reserved(number))
    except ValueError:
        last = None  # none yet, or what somebody who was killed left
    ring = ranges.arcs(item, last)
    size = _size(item)
    tries = PROBES if size > SMALL else size
    found = _probe(store, ring, tries)
    if found is None and tries < size:
        from sriov_fast.ipam import search

        found = search.find(store, ring, tries, _has_map(item))
    if found is None:
        raise IpamError(
            f"no address is free in {ranges.show(item)} (range set {number})",
            f"they are in {store.path}; widen the ranges, or see that DEL and GC reach this plugin",
            code=11,  # as with VFs: the next pod that ends gives one back
        )
    return found


def _probe(store: Store, ring: list[ranges.Arc], tries: int) -> Choice | None:
    """Try so many addresses; return the first free one."""
    for ip, there in ranges.candidates(ring):
        if not store.is_taken(show_ip(ip)):
            return ip, there
        tries -= 1
        if not tries:
            break
    return None


def _size(item: RangeSet) -> int:
    return sum(part.end - part.start + 1 for part in item)


def _has_map(item: RangeSet) -> bool:
    return SMALL < _size(item) <= _HUGE


def _is_directory(path: str) -> bool:
    """Say whether there is a directory; raises OSError where that could not be found out."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except OSError as error:
        if is_absent(error):
            return False
        raise


# --- resolv.conf


def resolver(path: str) -> dict[str, Any]:
    """Return ``dns`` from a file in the form of resolv.conf(5), {} without one."""
    if not path:
        return {}
    from sriov_fast import files  # late: few networks have this

    text = files.read("ipam.resolvConf", path, _LARGEST_RESOLVER).decode("utf-8", "replace")
    found: dict[str, Any] = {"nameservers": [], "domain": "", "search": [], "options": []}
    for line in text.split("\n"):
        _add_line(found, line.split())
    return {key: value for key, value in found.items() if value}


def _add_line(found: dict[str, Any], words: list[str]) -> None:
    """Take one line. Comments, and what is not ours, fall through: no key is named so."""
    if len(words) < 2:
        return
    if words[0] == "nameserver":
        found["nameservers"].append(words[1])
    elif words[0] == "domain":
        found["domain"] = words[1]
    elif words[0] in ("search", "options"):
        found[words[0]] += words[1:]
