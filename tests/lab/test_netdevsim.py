"""Settings of VFs that the lab's card does not support, on netdevsim, with both backends.

netdevsim's VFs have no network devices and no PCI addresses: these tests cover only netlink.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from harness.netdevsim import BUS, simulated
from harness.pod import link
from harness.waiting import wait_for
from sriov_fast.common.errors import NetlinkError
from sriov_fast.common.record import Link, VfSettings

NUMBER = 4711
VFS = 256
EVERYTHING = VfSettings(
    mac="02:5f:00:00:00:01",
    vlan=100,
    qos=5,
    proto="802.1ad",
    min_tx_rate=100,
    max_tx_rate=1000,
    spoofchk=True,
    link_state="disable",
    trust=True,
)


@pytest.fixture(scope="module")
def pf() -> Iterator[str]:
    """The network device of a simulated PF with 256 VFs."""
    with simulated(NUMBER, VFS) as name:
        device = BUS / "devices" / name / "net"
        (found,) = wait_for(lambda: [path.name for path in device.iterdir()], "netdevsim's device")
        yield found


class Port:
    """The simulated PF through one backend."""

    def __init__(self, backend: SimpleNamespace, pf: str) -> None:
        self.nl = backend.nl
        self.pf = pf
        self.index = link(pf)["ifindex"]

    def set(self, vf: int, **settings: Any) -> None:
        batch = self.nl.Batch()
        batch.set_vf(self.index, vf, VfSettings(**settings))
        with self.nl.Socket() as socket:
            socket.run(batch)

    def link(self, vf: int) -> Link:
        batch = self.nl.Batch()
        batch.get_link(name=self.pf, vf=vf)
        with self.nl.Socket() as socket:
            found: Link = socket.run(batch)[0]
        return found

    def get(self, vf: int) -> VfSettings:
        found = self.link(vf).vf
        assert found is not None
        return found


@pytest.fixture
def port(backend: SimpleNamespace, pf: str) -> Port:
    return Port(backend, pf)


def test_everything_at_once(port: Port) -> None:
    """One message applies all settings; the backend and ip(8) show the requested values."""
    before = port.get(3)
    neighbour = port.get(4)
    port.set(3, **EVERYTHING.as_dict())
    assert port.get(3) == EVERYTHING
    assert port.get(4) == neighbour
    shown = next(item for item in link(port.pf)["vfinfo_list"] if item["vf"] == 3)
    assert shown["address"] == EVERYTHING.mac
    assert shown["vlan_list"] == [{"vlan": 100, "qos": 5, "protocol": "802.1ad"}]
    assert shown["rate"] == {"max_tx": 1000, "min_tx": 100}
    assert shown["spoofchk"] is True
    assert shown["link_state"] == "disable"
    assert shown["trust"] is True
    port.set(3, **before.as_dict())
    assert port.get(3) == before.replace(proto=before.proto or "802.1Q")  # a new VF has no VLAN protocol


PARTS: list[dict[str, Any]] = [
    {"link_state": "enable"},
    {"link_state": "disable"},
    {"link_state": "auto"},
    {"trust": True},
    {"trust": False},
    {"spoofchk": True},
    {"spoofchk": False},
    {"min_tx_rate": 10, "max_tx_rate": 20},
    {"min_tx_rate": 0, "max_tx_rate": 0},
    {"vlan": 4094, "qos": 7, "proto": "802.1ad"},
    {"vlan": 1, "qos": 0, "proto": "802.1Q"},
    {"vlan": 0, "qos": 0, "proto": "802.1Q"},
    {"mac": "02:5f:00:00:00:02"},
    {"mac": "00:00:00:00:00:00"},
]


def test_each_by_itself_leaves_the_others(port: Port) -> None:
    for part in PARTS:
        expected = port.get(7).replace(**part)
        port.set(7, **part)
        assert port.get(7) == expected, part


def test_the_first_and_the_last_of_256(port: Port) -> None:
    """The list of 256 VFs exceeds a page; with statistics, it would exceed the size of an attribute."""
    for vf in (0, 128, VFS - 1):
        mac = f"02:5f:00:00:01:{vf:02x}"
        port.set(vf, mac=mac, vlan=vf + 1)
        found = port.link(vf)
        assert found.num_vf == VFS
        assert found.vf is not None
        assert (found.vf.mac, found.vf.vlan) == (mac, vf + 1)
        port.set(vf, mac="00:00:00:00:00:00", vlan=0)


def test_a_vf_beyond_the_last(port: Port) -> None:
    assert port.link(VFS).vf is None
    with pytest.raises(NetlinkError):
        port.set(VFS, vlan=1)


def test_a_refusal_names_the_reason(port: Port) -> None:
    """A multicast MAC, which netdevsim refuses, raises an error with the errno."""
    with pytest.raises(NetlinkError) as caught:
        port.set(1, mac="01:00:5e:00:00:01")
    assert caught.value.errno
