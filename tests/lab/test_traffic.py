"""Traffic of pods on a real card: isolation of VLANs, and DHCP."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.card import Card, Node, delegate, differences
from harness.pod import link
from harness.waiting import wait_for


@pytest.mark.parametrize("attach", ["move", "macvlan"])
def test_vlans_are_kept_apart(node: Node, card: Card, attach: str) -> None:
    """Pods of one subnet reach each other only on the same VLAN."""
    pods = {name: node.pod() for name in ("one", "two", "other")}
    vlans = {"one": 100, "two": 100, "other": 200}
    conf = node.conf(attach=attach, ipam=node.host_local())
    address = {}
    for name, pod in pods.items():
        result = node.add(conf, pod, args=f"VLAN={vlans[name]}")
        address[name] = result["ips"][0]["address"].partition("/")[0]
        assert card.vlan(node.owned(pod).number) == vlans[name]
    for pod in pods.values():
        node.await_carrier(pod)
    assert node.pings(pods["one"], address["two"])
    assert node.pings(pods["two"], address["one"])
    assert not node.pings(pods["one"], address["other"], seconds=3)
    assert not node.pings(pods["other"], address["two"], seconds=3)
    node.collect()
    assert not node.records()


# --- DHCP

SERVER = "10.66.0.1"
DNSMASQ = [
    "--keep-in-foreground",
    "--conf-file=",
    "--pid-file=",
    "--user=root",
    "--port=0",
    "--interface=eth0",
    "--bind-interfaces",
    "--dhcp-range=10.66.0.10,10.66.0.20,1h",
    "--dhcp-authoritative",
    "--no-ping",
]


@pytest.fixture
def dhcp_server(node: Node, card: Card) -> Path:
    """The lease file of a dnsmasq that runs in a pod on VLAN 100."""
    if not shutil.which("dnsmasq"):
        pytest.skip("needs dnsmasq (package dnsmasq-base)")
    pod = node.pod()
    ipam = {"type": "static", "addresses": [{"address": f"{SERVER}/24"}]}
    node.add(node.conf(name=f"{node.name}-server", vlan=100, ipam=ipam), pod)
    node.await_carrier(pod)
    leases = node.root / "leases"
    node.background(pod, "dnsmasq", *DNSMASQ, f"--dhcp-leasefile={leases}")
    wait_for(lambda: leases.exists(), "dnsmasq")
    return leases


@pytest.fixture
def dhcp_daemon(node: Node) -> Path:
    """The socket of the daemon of the plugin dhcp, which keeps the leases."""
    program = delegate("dhcp")
    if program is None:
        pytest.skip("needs the plugin dhcp")
    path = node.root / "dhcp.sock"
    node.background("", str(program), "daemon", "-socketpath", str(path))
    wait_for(path.exists, "the dhcp daemon")
    return path


def test_dhcp(node: Node, card: Card, dhcp_server: Path, dhcp_daemon: Path) -> None:
    """An ADD gets an address by DHCP, and a DEL releases it, while the VF is up in the pod."""
    pod = node.pod()
    before = card.state()
    conf = node.conf(vlan=100, mac="02:5f:00:00:00:01")
    conf["ipam"] = {"type": "dhcp", "daemonSocketPath": str(dhcp_daemon)}
    result = node.add(conf, pod)
    given = result["ips"][0]["address"]
    assert given.startswith("10.66.0.")
    assert result["ips"][0]["gateway"] == SERVER
    assert node.addresses(pod) == {given}
    assert link("eth0", pod)["address"] == "02:5f:00:00:00:01"
    assert f"02:5f:00:00:00:01 {given.partition('/')[0]} " in dhcp_server.read_text()
    assert node.pings(pod, SERVER)
    node.check(conf, pod, result)
    node.delete(conf, pod)
    wait_for(lambda: "02:5f:00:00:00:01" not in dhcp_server.read_text(), "the lease's end")
    assert not differences(before, card.state())
    node.collect(network=f"{node.name}-server")
