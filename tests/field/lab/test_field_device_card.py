"""What a pod does to a real VF's device, and how the VF comes home; the fixtures compare each VF's state."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable

import pytest

from harness import devices
from harness.card import Card, Node, differences
from harness.pod import ip

GRINGPARAM, SRINGPARAM, GCOALESCE, SCOALESCE, GMSGLVL, SMSGLVL = 0x10, 0x11, 0x0E, 0x0F, 0x07, 0x08
SGSO, STSO, STXCSUM = 0x24, 0x1F, 0x17

Change = Callable[[str], None]


def halve_the_rings(pod: str) -> None:
    rings = devices.ethtool(pod, "eth0", GRINGPARAM, size=9)
    devices.ethtool(pod, "eth0", SRINGPARAM, *rings[1:5], rings[5] // 2, *rings[6:8], rings[8] // 2)


def wait_longer(pod: str) -> None:
    coalescing = devices.ethtool(pod, "eth0", GCOALESCE, size=23)
    devices.ethtool(pod, "eth0", SCOALESCE, coalescing[1] + 50, *coalescing[2:])


def switch_offloads_off(pod: str) -> None:
    for command in (SGSO, STSO, STXCSUM):
        devices.switch(pod, "eth0", command, 0)


def say_more(pod: str) -> None:
    devices.ethtool(pod, "eth0", SMSGLVL, devices.ethtool(pod, "eth0", GMSGLVL, size=2)[1] ^ 1)


def set_the_link(pod: str) -> None:
    words = "promisc on allmulticast on arp off txqueuelen 7 alias left-behind group 5 gso_max_size 4000"
    ip("-n", pod, "link", "set", "dev", "eth0", *words.split())
    ip("-n", pod, "link", "property", "add", "dev", "eth0", "altname", "the-pods")


def attach_a_program(pod: str) -> None:
    devices.attach_xdp(pod, "eth0", "generic")


CHANGES: list[Change] = [
    halve_the_rings,
    wait_longer,
    switch_offloads_off,
    say_more,
    set_the_link,
    attach_a_program,
]


@pytest.mark.parametrize("asked", [{}, {"mac": "02:5f:00:00:00:01", "vlan": 100}], ids=["plain", "mac"])
def test_410_everything_at_once(node: Node, card: Card, asked: dict[str, object]) -> None:
    """A pod changes all that a driver lets it, and its VF comes home as it was."""
    before, pod = card.state(), node.pod()
    node.add(node.conf(vf=0, **asked), pod)
    made = [change.__name__ for change in CHANGES if _done(change, pod)]
    node.delete(node.conf(), pod)
    assert {"switch_offloads_off", "set_the_link"} <= set(made)
    if card.driver == "igb":
        assert len(made) == len(CHANGES)
    assert not differences(before, card.state())


def _done(change: Change, pod: str) -> bool:
    """Make a change; say whether the driver lets the pod do so."""
    try:
        change(pod)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return False
    return True


def test_411_a_namespace_that_is_gone(node: Node, card: Card) -> None:
    """The pod's namespace ends before the DEL, and the device comes home with the pod's settings on it."""
    before, pod = card.state(), node.pod()
    node.add(node.conf(vf=0), pod)
    for change in CHANGES:
        _done(change, pod)
    ip("netns", "del", pod)
    time.sleep(1)
    node.delete(node.conf(), pod)
    assert not differences(before, card.state())
