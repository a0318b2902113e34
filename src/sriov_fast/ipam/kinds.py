"""What must be known of an IPAM plugin before it is run, by its name alone.

Apart from ``builtin`` and ``delegate``, so that each is imported only where it serves.
"""

from __future__ import annotations

# These only hand out addresses: their results never carry the seed's "extra".
_PLAIN = ("dhcp", "host-local", "static")


def may_choose_vf(kind: str) -> bool:
    """Say whether the result may carry ``extra`` (VF, VLAN, MAC): IPAM must run before a VF is chosen."""
    return kind not in _PLAIN


def needs_interface(kind: str) -> bool:
    """Say whether the plugin speaks through the pod's interface: it must run after the attach."""
    return kind == "dhcp"
