"""The announcement of a pod's addresses, received on the other end of the veth pair."""

from __future__ import annotations

import os
import select
import socket
import time

import pytest

from harness.veth import Node
from sriov_fast import _nl
from sriov_fast.vf import announce

pytestmark = pytest.mark.modes("resident")

ETH_P_ALL = 3  # linux/if_ether.h


def listen(node: Node) -> socket.socket:
    """Return a packet socket on the peer of VF 0."""
    namespace = os.open(f"/run/netns/{node.host}", os.O_RDONLY)
    fd = _nl.raw_socket(namespace, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    os.close(namespace)
    ear = socket.socket(fileno=fd)
    ear.bind(("peer0", ETH_P_ALL))
    return ear


def heard(wire: socket.socket, wanted: set[bytes]) -> set[bytes]:
    """Receive until all wanted frames have arrived or time is up; return the wanted frames received."""
    deadline, found = time.monotonic() + 20, set[bytes]()
    while found != wanted and time.monotonic() < deadline:
        if select.select([wire], [], [], 0.1)[0]:
            found |= {wire.recv(2048)} & wanted
    return found


def test_gratuitous_arp_and_unsolicited_na(either: Node) -> None:
    """An ADD announces each address; tests/plain/test_announce.py compares the frames byte for byte."""
    node, addresses = either, ["10.0.0.2/24", "fd00::2/64"]
    ipam = {"type": "static", "addresses": [{"address": each} for each in addresses]}
    wanted = set(announce.frames(node.link("pf0v0")["address"], addresses))
    assert len(wanted) == 2
    with listen(node) as wire:
        node.add(node.conf(vf=0, ipam=ipam), node.pod())
        assert heard(wire, wanted) == wanted


def test_nothing_is_said_without_an_address(node: Node) -> None:
    with listen(node) as wire:
        node.add(node.conf(vf=0), node.pod())
        node.settle()
        while select.select([wire], [], [], 0)[0]:
            frame = wire.recv(2048)
            assert frame[12:14] != b"\x08\x06", "an ARP"
            assert frame[12:14] + frame[54:55] != b"\x86\xdd\x88", "a neighbour advertisement"


def test_the_runtime_does_not_wait_for_it(node: Node) -> None:
    """Without carrier the announcement waits up to two seconds, with the plugin's streams closed."""
    node.nip("link", "set", "peer0", "down")
    pod = node.pod()
    addresses = [{"address": "10.0.0.2/24"}]
    conf = node.conf(vf=0, ipam={"type": "static", "addresses": addresses})

    def still_waits() -> bool:
        """Return whether the announcement still waits for carrier after the plugin has closed its streams."""
        node.add(conf, pod)
        found = node.announcing(pod)
        node.settle()
        node.delete(conf, pod)
        return found

    # on a busy machine this process may continue only after the two seconds
    assert any(still_waits() for _ in range(5))


def test_it_says_nothing_of_a_pod_that_is_gone(node: Node) -> None:
    """The announcement logs nothing if the device disappears while it waits for carrier."""
    node.nip("link", "set", "peer0", "down")
    pod = node.pod()
    conf = node.conf(vf=0, ipam={"type": "static", "addresses": [{"address": "10.0.0.2/24"}]})
    node.add(conf, pod)
    assert node.delete(conf, pod).stderr.count("\n") == 1
    node.settle()
