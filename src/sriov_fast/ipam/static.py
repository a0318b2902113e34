"""The built-in ``static``: the addresses that the configuration, CNI_ARGS or the runtime name."""

from __future__ import annotations

from sriov_fast.common import cni_args
from sriov_fast.common.errors import CheckError
from sriov_fast.ipam.builtin import Builtin, read_address, read_dns, read_routes
from sriov_fast.ipam.keys import as_value, check_cidr, check_ip, show_ip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sriov_fast.ipam.builtin import Given
    from sriov_fast.ipam.keys import Ip, Keys


class Static(Builtin):
    """Addresses as given. Nothing is stored, so DEL and GC do nothing."""

    kind = "static"

    def add(self) -> dict[str, Any]:
        """Return a result with the configured addresses, routes and DNS settings."""
        ipam = self.keys.inner("ipam")
        return self.result(self._addresses(), read_routes(ipam), read_dns(ipam.inner("dns")))

    def check(self) -> None:
        """Raise CheckError if the previous result has one of the addresses with another gateway."""
        given = self._addresses()
        for item in self.given_before():
            self._compare(item, given)

    def status(self) -> None:
        """Raise ConfigError if the configuration cannot serve an ADD."""
        self.add()

    def _compare(self, item: Keys, given: list[Given]) -> None:
        ip, gateway = item.cidr("address")[0], item.ip("gateway")
        for ours, _, wanted in given:
            if ours == ip and wanted and wanted != gateway:
                raise CheckError(
                    f"{item.place('gateway')} = {item.get('gateway')!r}: {show_ip(ip)} was given "
                    f"{show_ip(wanted)}",
                    "the configuration has changed since; delete the pod and start it anew",
                )

    def _addresses(self) -> list[Given]:
        """Return the addresses; those of ``args`` or ``runtimeConfig`` replace those of the configuration."""
        found = [*map(read_address, self.keys.inner("ipam").objects("addresses")), *self._from_args()]
        for source in (self.keys.inner("args").inner("cni"), self.keys.inner("runtimeConfig")):
            asked = [as_value(check_cidr, value, where) for where, value in source.items("ips")]
            found = [(ip, length, None) for ip, length in asked] or found
        self.one_each([ip[0] for ip, _, _ in found])
        return found

    def _from_args(self) -> list[Given]:
        """Return the addresses of CNI_ARGS, which are added to the configured ones."""
        given = cni_args.readable(self.args)
        pairs = [as_value(check_cidr, text, "CNI_ARGS IP") for text in _words(given.get("IP", ""))]
        gateways = [as_value(check_ip, text, "CNI_ARGS GATEWAY") for text in _words(given.get("GATEWAY", ""))]
        return [(ip, length, _gateway(ip, length, gateways)) for ip, length in pairs]


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")] if text else []


def _gateway(ip: Ip, length: int, gateways: list[Ip]) -> Ip | None:
    """Return the last of the gateways that is in the address's network; None if there is none."""
    host = ip[0] - length
    inside = [item for item in gateways if item[0] == ip[0] and item[1] >> host == ip[1] >> host]
    return inside[-1] if inside else None
