"""Questions about an IPAM plugin that its name alone answers.

They have a module of their own because every request imports it, and few requests need a built-in plugin.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sriov_fast.ipam.builtin import Builtin

# The results of these carry no "extra": they give addresses and nothing else.
_PLAIN = ("dhcp", "host-local", "static")


def may_choose_vf(kind: str) -> bool:
    """Say whether the result may have ``extra`` (VF, VLAN, MAC). IPAM then runs before a VF is chosen."""
    return kind not in _PLAIN


def needs_interface(kind: str) -> bool:
    """Say whether the plugin uses the pod's interface. IPAM then runs after the attach."""
    return kind == "dhcp"


def builtin(kind: str, ipam: dict[str, Any] | None) -> type[Builtin] | None:
    """Return the built-in plugin for an ``ipam`` object; None if a plugin must be executed."""
    if kind not in ("host-local", "static", "txipam") or _is_delegated(ipam or {}):
        return None
    if kind == "static":
        from sriov_fast.ipam.static import Static

        return Static
    if kind == "txipam":
        from sriov_fast.ipam.txipam.plugin import TxIpam

        return TxIpam
    from sriov_fast.ipam.host_local.plugin import HostLocal

    return HostLocal


def _is_delegated(ipam: dict[str, Any]) -> bool:
    """Say whether the configuration wants the plugin executed although there is a built-in one."""
    delegated = {key.casefold(): value for key, value in ipam.items()}.get("delegate")
    if delegated is None or isinstance(delegated, bool):
        return bool(delegated)
    from sriov_fast.ipam.keys import wrong

    raise wrong("ipam.delegate", delegated, "not a truth value", "give true or false, without quotes")
