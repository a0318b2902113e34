"""Pod sandboxes through containerd's CRI, started and ended as by a kubelet, with this plugin's network."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from harness import pod as netns
from harness.card import RECORDS, Card, Node, differences, ip, start_server
from harness.cri import ARP_NOTIFY, CHAIN, MODES, MTU, NETWORK, VLAN, networks
from harness.server import Server
from lab.containerd import Containerd

pytest.importorskip("grpc_tools", reason="needs grpcio-tools")

from lab import cri

pytestmark = pytest.mark.modes("own")

HOST_PORT, POD_PORT = 8080, 80
RESULTS = Path("/var/lib/cni/results")


class Kubelet(NamedTuple):
    """A runtime, the client of its CRI, and the directory of leases."""

    runtime: Containerd
    sandboxes: cri.Sandboxes
    leases: Path

    def addresses(self) -> list[str]:
        """Return the addresses that host-local has leased."""
        return sorted(path.name for path in self.leases.glob("[0-9]*"))

    def start_pods(self) -> dict[str, str]:
        """Start a sandbox with each mode; return their IDs."""
        ids = {mode: self.sandboxes.run(f"pod-{mode}", mode) for mode in MODES}
        assert sorted(map(self.sandboxes.address, ids.values())) == self.addresses()
        assert attached() == set(ids.values())
        return ids

    def answer(self, node: Node, one: str, other: str) -> None:
        """Assert that two pods answer each other's pings."""
        for asking, asked in ((one, other), (other, one)):
            assert node.pings(self.sandboxes.namespace(asking).name, self.sandboxes.address(asked))

    def is_empty(self) -> bool:
        """Return whether no lease, record or namespace of a sandbox is left."""
        return not (self.addresses() or attached() or "cni-" in ip("netns", "list"))


@pytest.fixture(scope="module")
def kubelet(runtime: Containerd) -> Iterator[Kubelet]:
    with cri.Sandboxes(runtime.socket) as sandboxes:
        yield Kubelet(runtime, sandboxes, runtime.top.with_name("ipam") / NETWORK)


@pytest.fixture
def server(node: Node) -> Iterator[Server]:
    """A server that the test may kill."""
    with serving(node.root / "server.log") as one:
        yield one


@contextmanager
def serving(log: Path) -> Iterator[Server]:
    one = start_server(log)
    try:
        yield one
    finally:
        one.stop()


def attached() -> set[str]:
    """Return the containers that have a VF according to the journal."""
    return {path.name.split("~")[1] for path in RECORDS.iterdir()}


def test_sandboxes_outlive_restarts(node: Node, card: Card, kubelet: Kubelet, server: Server) -> None:
    """Sandboxes keep their network while containerd and the server are killed.

    As with a kubelet, a pod that restarts gets a new sandbox, and the old one is removed later. One sandbox
    is removed without a server, the other by the next server.
    """
    before, sandboxes = card.state(), kubelet.sandboxes
    first = kubelet.start_pods()
    held = card.state().values()
    assert [vf["pf"]["vlan_list"][0]["vlan"] for vf in held if vf["pf"]["vlan_list"] != [{}]] == [VLAN] * 2
    kubelet.answer(node, *first.values())
    for sandbox in first.values():
        sandboxes.stop(sandbox)
        assert not sandboxes.is_ready(sandbox)
    assert (kubelet.addresses(), attached()) == ([], set())
    assert not differences(before, card.state())

    second = {mode: sandboxes.run(f"pod-{mode}", mode, attempt=1) for mode in MODES}
    for sandbox in first.values():
        sandboxes.remove(sandbox)
    addresses = [sandboxes.address(sandbox) for sandbox in second.values()]
    kubelet.runtime.process.kill()
    kubelet.runtime.process.wait()
    server.kill()
    kubelet.runtime.launch()
    assert all(map(sandboxes.is_ready, second.values()))
    assert [sandboxes.address(sandbox) for sandbox in second.values()] == addresses
    kubelet.answer(node, *second.values())
    sandboxes.remove(second["move"])
    with serving(node.root / "next.log"):
        assert attached() == {second["macvlan"]}
        sandboxes.remove(second["macvlan"])
    assert kubelet.is_empty()
    assert not differences(before, card.state())


@pytest.mark.usefixtures("server")
def test_a_list_with_other_plugins(node: Node, card: Card, kubelet: Kubelet) -> None:
    """A list of sriov, tuning, bandwidth, sbr and portmap works; CHECK gets the result of the whole list."""
    before, sandboxes = card.state(), kubelet.sandboxes
    sandbox = sandboxes.run("pod-chain", CHAIN, ports={HOST_PORT: POD_PORT})
    pod = sandboxes.namespace(sandbox).name
    assert netns.link("eth0", pod)["mtu"] == MTU
    assert node.inside(pod, "cat", ARP_NOTIFY).stdout == "1\n"
    command = ("iptables", "-t", "nat", "-S")
    rules = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"{sandboxes.address(sandbox)}:{POD_PORT}" in rules
    assert f"from {sandboxes.address(sandbox)}" in node.inside(pod, "ip", "rule").stdout
    network = networks(card, kubelet.leases.parent)[CHAIN]
    conf = {"cniVersion": network["cniVersion"], "name": network["name"], **network["plugins"][0]}
    cached = json.loads((RESULTS / f"{NETWORK}-{sandbox}-eth0").read_text())
    node.check(conf, pod, cached["result"], container=sandbox)
    netns.ip("-n", pod, "address", "flush", "dev", "eth0")
    assert node.run("CHECK", conf | {"prevResult": cached["result"]}, pod, container=sandbox).status == 1
    sandboxes.remove(sandbox)
    assert kubelet.is_empty()
    assert not differences(before, card.state())
