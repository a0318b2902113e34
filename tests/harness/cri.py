"""The networks of the tests' containerd: one for each runtime handler of its CRI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.card import Card

NETWORK = "lab-cri"
VLAN = 100
MODES = ("move", "macvlan")
CHAIN = "chain"
MTU = 1400  # set by tuning
ARP_NOTIFY = "/proc/sys/net/ipv4/conf/eth0/arp_notify"


def networks(card: Card, leases: Path) -> dict[str, dict[str, Any]]:
    """Return a network for each mode, and one with other plugins after sriov; all share one subnet."""
    ipam = {"type": "host-local", "subnet": "10.78.0.0/24", "dataDir": str(leases)}
    plugin = {"type": "sriov", "master": card.pf, "vlan": VLAN, "ipam": ipam}
    sysctl = {ARP_NOTIFY.removeprefix("/proc/sys/").replace("/", "."): "1"}
    others = [
        {"type": "tuning", "sysctl": sysctl, "mtu": MTU},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
        {"type": "sbr"},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    lists = {mode: [plugin | {"attach": mode}] for mode in MODES} | {CHAIN: [plugin, *others]}
    return {
        name: {"cniVersion": "1.0.0", "name": NETWORK, "plugins": plugins} for name, plugins in lists.items()
    }
