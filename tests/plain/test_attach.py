"""The settings that an attach makes through the PF."""

from __future__ import annotations

from typing import Any

import pytest

from sriov_fast.common.record import VfSettings
from sriov_fast.vf import attach
from sriov_fast.vf.journal import Attachment

BEFORE: dict[str, Any] = {
    "mac": "02:00:00:00:00:01",
    **dict.fromkeys(("vlan", "qos", "min_tx_rate", "max_tx_rate"), 0),
    "proto": "802.1Q",
    "spoofchk": True,
    "link_state": "auto",
    "trust": False,
}


def changes(asked: dict[str, Any], **before: Any) -> dict[str, Any]:
    """Return the settings that an attach sends to the PF."""
    record = Attachment(
        container_id="c",
        ifname="e",
        pci="0000:03:10.0",
        asked=VfSettings(**asked),
        before=VfSettings(**(BEFORE | before)),
    )
    return attach.changes(record).known()


@pytest.mark.parametrize(
    "same",
    [
        {},
        {"link_state": "auto"},
        {"spoofchk": True, "trust": False},
        {"vlan": 0},
        {"vlan": 0, "qos": 0, "proto": "802.1Q"},
        {"min_tx_rate": 0},
        {"min_tx_rate": 0, "max_tx_rate": 0},
    ],
)
def test_the_present_state_is_not_sent(same: dict[str, Any]) -> None:
    assert changes(same) == {}


def test_a_tag_and_a_pair_of_rates_are_sent_whole() -> None:
    assert changes({"vlan": 7, "qos": 3}, vlan=7) == {"vlan": 7, "qos": 3}
    assert changes({"vlan": 7}, vlan=7, qos=3) == {"vlan": 7}
    assert changes({"vlan": 7, "proto": "802.1ad"}, vlan=7) == {"vlan": 7, "proto": "802.1ad"}
    assert changes({"max_tx_rate": 9}, min_tx_rate=5) == {"min_tx_rate": 5, "max_tx_rate": 9}
    assert changes({"vlan": 7}, vlan=7) == {}


def test_a_setting_that_the_pf_does_not_show_is_sent() -> None:
    unknown = dict.fromkeys(("spoofchk", "trust", "link_state", "vlan"))
    asked = {"spoofchk": True, "trust": False, "link_state": "auto", "vlan": 0}
    assert changes(asked, **unknown) == asked


def test_a_mac_is_always_sent() -> None:
    """An unchanged MAC is sent as well: a driver fixes the VF's MAC only when the PF sets one."""
    assert changes({"mac": BEFORE["mac"]}) == {"mac": BEFORE["mac"]}
