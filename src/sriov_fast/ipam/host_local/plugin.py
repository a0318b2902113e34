"""``host-local`` in this process: the verbs.

Configuration, results and store are those of containernetworking's plugin, and both may use one store at the
same time. An ADD chooses an address of every range set before it takes the first one.
"""

from __future__ import annotations

import os

from sriov_fast.common import cni_args
from sriov_fast.common.errors import BusyError, CheckError, ConfigError, IpamError, UnavailableError, is_there
from sriov_fast.common.json_object import valid_attachments
from sriov_fast.ipam.builtin import Builtin, read_routes
from sriov_fast.ipam.host_local import ranges
from sriov_fast.ipam.host_local.store import WAIT, Store
from sriov_fast.ipam.keys import as_value, check_ip_or_cidr, parse_ip, show_ip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sriov_fast.ipam.host_local.ranges import RangeSet, ReservedVf
    from sriov_fast.ipam.keys import Ip

# An ADD reads a store of up to so many files to see that the interface has no address yet. With more files
# that would take longer than the rest of the ADD, and the plugin's own records refuse a second ADD anyway.
MOST_READ = 32
# The number of times that a process without the lock may take an address which was just chosen here.
_ATTEMPTS = 10
_LARGEST_RESOLVER = 1 << 16  # bytes


class HostLocal(Builtin):
    """Addresses from the ranges of the configuration, kept in a store on disk."""

    kind = "host-local"

    @property
    def owner(self) -> tuple[str, str]:
        """The owner of the addresses: container ID and interface name."""
        return self.container_id.strip(), self.ifname

    def add(self) -> dict[str, Any]:
        """Give one address of each range set."""
        sets = ranges.read(self.keys)
        self.one_each([item[0].bits for item in sets])
        wishes = _pair(sets, self._requested())
        ipam = self.keys.inner("ipam")
        routes = read_routes(ipam)
        dns = resolver(ipam.text("resolvConf"))
        with Store(self._path(), self.wait(WAIT)) as store:
            given = self._take(store, sets, wishes)
        return self.result([(ip, item.length, (ip[0], item.gateway)) for ip, item in given], routes, dns)

    def delete(self) -> None:
        """Free the addresses of the container's interface."""
        path = self._path()
        if is_there(path):
            with Store(path, self.wait(WAIT)) as store:
                store.release(self.owner, self._recorded())

    def check(self) -> None:
        """Raise CheckError if the container's interface has no address."""
        path = self._path()
        if is_there(path):
            with Store(path, self.wait(WAIT)) as store:
                if store.find(self.owner, self._recorded()):
                    return
        raise CheckError(
            f"container {self.container_id} has no address for {self.ifname} in {path}",
            "it was never given, or was freed since; delete the pod and start it anew",
        )

    def status(self) -> None:
        """Raise if the configuration or the store's directory cannot serve an ADD.

        A full range is no reason: the runtime would take that for a node without a network.
        """
        ranges.read(self.keys)
        read_routes(self.keys.inner("ipam"))
        there = self._path()
        while not is_there(there) and there not in ("/", ""):
            there = os.path.dirname(there)
        if not os.access(there or ".", os.W_OK | os.X_OK):
            raise UnavailableError(
                f"ipam.dataDir: {there} cannot be written to", "host-local keeps its addresses there"
            )

    def collect(self) -> None:
        """Free the addresses that no valid attachment has."""
        valid = set(valid_attachments(self.keys))
        path = self._path()
        if is_there(path):
            with Store(path, self.wait(WAIT)) as store:
                store.keep_only(valid)

    def _path(self) -> str:
        """Return the directory of the network's store; RefusedError if root does not allow ``dataDir``."""
        name = self.network()
        directory = self.keys.inner("ipam").text("dataDir")
        if directory:
            from sriov_fast.common import files  # late: most networks have the default

            files.directory("ipam.dataDir", directory, name)
        return os.path.normpath(f"{directory or self.networks}/{name}")

    def _recorded(self) -> list[str]:
        return [cidr.partition("/")[0] for cidr in self.recorded]

    def _requested(self) -> dict[str, Ip]:
        """Return the addresses that CNI_ARGS and the configuration ask for, by their texts."""
        asked = cni_args.readable(self.args).get("IP", "")
        found = [("CNI_ARGS IP", text) for text in asked.split(",") if asked]
        ips = [as_value(check_ip_or_cidr, value, where) for where, value in [*found, *self.requested()]]
        return {show_ip(ip): ip for ip in ips}

    def _take(self, store: Store, sets: list[RangeSet], wishes: list[Ip | None]) -> list[ReservedVf]:
        """Choose and take an address of each set: the requested one, else the next free one."""
        for _ in range(_ATTEMPTS):
            names = store.names()
            self._refuse_second(store, names, sets, wishes)
            plan = [
                _wished(store, names, item, wish) if wish else _next(store, names, number, item)
                for number, (item, wish) in enumerate(zip(sets, wishes, strict=True))
            ]
            try:
                store.reserve(self.owner, [show_ip(ip) for ip, _ in plan])
            except FileExistsError:
                continue
            return plan
        raise IpamError(
            f"{store.path}: addresses are taken by a process that does not take the lock",
            "see which other processes write there; try again",
            code=11,
        )

    def _refuse_second(
        self, store: Store, names: set[str], sets: list[RangeSet], wishes: list[Ip | None]
    ) -> None:
        """Refuse a second address of a set for the same interface, unless it is requested."""
        if len(names) > MOST_READ:
            return
        for address in store.owned(self.owner, names):
            for item, wish in zip(sets, wishes, strict=True):
                if not wish and ranges.find(item, parse_ip(address)):
                    raise IpamError(
                        f"{self.ifname} of container {self.container_id} has {address} already",
                        "DEL it first",
                        code=BusyError.code,
                    )


def _pair(sets: list[RangeSet], requested: dict[str, Ip]) -> list[Ip | None]:
    """Return the requested address of each set; every requested address must belong to a set."""
    found: list[Ip | None] = []
    rest = dict(requested)
    for item in sets:
        text = next((text for text, ip in rest.items() if ranges.find(item, ip)), None)
        found.append(rest.pop(text) if text else None)
    if rest:
        raise ConfigError(
            f"requested addresses {', '.join(rest)}: in no range set, or a second one of the same set",
            f"range sets: {'; '.join(map(ranges.show, sets))}; each gives one address",
        )
    return found


def _wished(store: Store, names: set[str], item: RangeSet, ip: Ip) -> ReservedVf:
    """Return the requested address if it is free."""
    text = show_ip(ip)
    there = ranges.find(item, ip)
    if there is None or ip[1] == there.gateway:
        raise ConfigError(f"requested address {text}: it is the gateway", "ask for another")
    if text in names:
        raise IpamError(
            f"requested address {text} is taken, in {store.path}", "ask for another", code=BusyError.code
        )
    return ip, there


def _next(store: Store, names: set[str], number: int, item: RangeSet) -> ReservedVf:
    """Return the next free address of a set."""
    for ip, there in ranges.candidates(item, store.last_reserved(number)):
        if show_ip(ip) not in names:
            return ip, there
    raise IpamError(
        f"no address is free in {ranges.show(item)} (range set {number})",
        f"they are in {store.path}; widen the ranges, or see that DEL and GC reach this plugin",
        code=11,  # "try again later": the next pod that ends gives one back
    )


def resolver(path: str) -> dict[str, Any]:
    """Return ``dns`` of the result from a file in the form of resolv.conf(5); {} if none is configured."""
    if not path:
        return {}
    from sriov_fast.common import files  # late: few networks have this

    text = files.read("ipam.resolvConf", path, _LARGEST_RESOLVER).decode("utf-8", "replace")
    found: dict[str, Any] = {"nameservers": [], "domain": "", "search": [], "options": []}
    for line in text.split("\n"):
        keyword, *values = line.split() or [""]
        if keyword == "nameserver" and values:
            found["nameservers"].append(values[0])
        elif keyword == "domain" and values:
            found["domain"] = values[0]
        elif keyword in ("search", "options"):
            found[keyword] += values
    return {key: value for key, value in found.items() if value}
