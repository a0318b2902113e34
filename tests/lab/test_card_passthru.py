"""The attach mode "macvlan" on a real card: the VF stays in the host, the pod gets a macvlan on the VF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.card import Card, Node, differences
from harness.pod import ip, link

MAC, OTHER = "02:5f:00:00:00:01", "02:5f:00:00:00:02"
VF = 1
ASKED: dict[str, Any] = {"vf": VF, "mac": MAC, "vlan": 100, "mtu": 1400, "cores": "0", "spoofchk": "off"}


def conf(node: Node, **more: Any) -> dict[str, Any]:
    return node.conf(**{"attach": "macvlan", "cniVersion": "1.1.0"} | more)


def disabled_ipv6(name: str) -> str:
    return Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").read_text().strip()


def macs(card: Card, pod: str) -> tuple[str, ...]:
    """Return the MACs of the pod's device, of the VF's device, and of the VF on the PF."""
    sides = (link("eth0", pod), link(card.vf(VF).netdev), card.on_pf(VF))
    return tuple(side["address"] for side in sides)


@pytest.mark.parametrize("history", ["up", "mac"])
def test_everything_that_the_card_can_do(node: Node, card: Card, history: str) -> None:
    """An ADD sets MAC, VLAN, MTU and interrupts; it runs twice, since a driver may refuse a second MAC."""
    pod, name = node.pod(), card.vf(VF).netdev
    own = link(name)["address"]
    if history == "up":
        ip("link", "set", name, "up")
    if history == "mac":
        card.set(VF, "mac", "02:5f:00:00:00:0a")
    before = card.state()
    for mac in (MAC, OTHER):
        asked = conf(node, **ASKED | {"mac": mac, "ipam": node.host_local()})
        result = node.add(asked, pod)
        assert macs(card, pod) == (mac, mac, mac)
        assert result["interfaces"][0]["mac"] == mac
        assert result["interfaces"][0]["pciID"] == card.vf(VF).pci
        assert (link("eth0", pod)["mtu"], link(name)["mtu"]) == (1400, 1400)
        assert card.vlan(VF) == 100
        assert {"UP", "NOARP"} <= set(link(name)["flags"])
        assert link(name)["addr_info"] == []
        node.check(asked, pod, result)
        node.delete(asked, pod)
        assert not differences(before, card.state())
        assert disabled_ipv6(name) == "0"
    if history == "up":
        assert "UP" in link(name)["flags"]
        ip("link", "set", name, "down")
    if history == "mac":
        card.restore_mac(VF, own)
