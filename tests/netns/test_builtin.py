"""The plugin with its own host-local and static: no second process, the same store."""

from __future__ import annotations

from typing import Any

import pytest

from harness.veth import Node

pytestmark = pytest.mark.modes("resident")


def own(node: Node, **more: Any) -> dict[str, Any]:
    """Return an ``ipam`` object that no other plugin serves."""
    return node.host_local(delegate=False, **more)


@pytest.fixture
def alone(node: Node) -> Node:
    """A node without any IPAM plugin."""
    node.search = str(node.root / "nothing")
    return node


def test_newest_version(alone: Node) -> None:
    """Debian's plugin does not speak it; ours does."""
    pod = alone.pod()
    before = alone.state()
    conf = alone.conf(cniVersion="1.1.0", ipam=own(alone, routes=[{"dst": "0.0.0.0/0", "mtu": 1400}]))
    found = alone.add(conf, pod)
    assert found["ips"] == [{"address": "10.77.0.2/24", "gateway": "10.77.0.1", "interface": 0}]
    assert found["routes"] == [{"dst": "0.0.0.0/0", "mtu": 1400}]
    assert alone.addresses("eth0", pod) == ["10.77.0.2/24"]
    assert alone.leases() == ["10.77.0.2"]
    assert alone.run("CHECK", conf | {"prevResult": found}, pod).status == 0
    assert alone.run("STATUS", conf).status == 0
    alone.delete(conf, pod)
    assert (alone.state(), alone.leases(), alone.records()) == (before, [], [])


def test_gc(alone: Node) -> None:
    before = alone.state()
    conf = alone.conf(cniVersion="1.1.0", ipam=own(alone))
    gone, stays = alone.pod(), alone.pod()
    alone.add(conf, gone)
    alone.add(conf, stays)
    valid = [{"containerID": stays, "ifname": "eth0"}]
    assert alone.run("GC", conf | {"cni.dev/valid-attachments": valid}).status == 0
    assert alone.leases() == ["10.77.0.3"]
    alone.delete(conf, stays)
    assert (alone.state(), alone.leases(), alone.records()) == (before, [], [])


def test_gc_uses_the_configuration_of_the_attach(alone: Node) -> None:
    """The store is where the pod was attached with, whatever GC's own configuration says."""
    conf = alone.conf(cniVersion="1.1.0", ipam=own(alone))
    alone.add(conf, alone.pod())
    other = conf | {"ipam": own(alone) | {"dataDir": str(alone.root / "elsewhere")}}
    assert alone.run("GC", other | {"cni.dev/valid-attachments": []}).status == 0
    assert (alone.leases(), alone.records()) == ([], [])


def test_a_failed_add_gives_the_address_back(alone: Node) -> None:
    before = alone.state()
    routes = [{"dst": "192.0.2.0/24", "gw": "203.0.113.1"}]  # no way to that gateway
    done = alone.run("ADD", alone.conf(ipam=own(alone, routes=routes)), alone.pod())
    assert done.status == 1
    assert "192.0.2.0/24" in done.json["msg"]
    assert (alone.state(), alone.leases(), alone.records()) == (before, [], [])


def test_exhausted(alone: Node) -> None:
    before = alone.state()
    conf = alone.conf(ipam=own(alone, subnet="10.77.0.0/30"))
    pod = alone.pod()
    alone.add(conf, pod)
    done = alone.run("ADD", conf, alone.pod())
    assert (done.status, len(alone.records())) == (1, 1), done
    alone.delete(conf, pod)
    assert (alone.state(), alone.leases()) == (before, [])


def test_del_reads_the_recorded_address_alone(alone: Node) -> None:
    """An address of another pod that cannot be read keeps no DEL from freeing its own."""
    conf, pod = alone.conf(ipam=own(alone)), alone.pod()
    alone.add(conf, pod)
    other = alone.root / "ipam/net1/10.77.0.9"
    other.symlink_to("/nowhere")  # no link is followed: reading it is an error
    alone.delete(conf, pod)
    assert alone.leases() == ["10.77.0.9"]
    other.unlink()


def test_static(alone: Node) -> None:
    pod = alone.pod()
    conf = alone.conf(
        ipam={"type": "static", "addresses": [{"address": "10.9.8.7/24"}, {"address": "fd00::7/64"}]}
    )
    alone.add(conf, pod)
    assert set(alone.addresses("eth0", pod)) == {"10.9.8.7/24", "fd00::7/64"}
    alone.delete(conf, pod)


def test_beside_the_real_one(node: Node) -> None:
    """One store: what one gave the other neither gives again nor fails to release."""
    ours, theirs = node.conf(ipam=own(node)), node.conf(ipam=node.host_local())
    first, second = node.pod(), node.pod()
    node.add(ours, first)
    node.add(theirs, second)
    assert node.leases() == ["10.77.0.2", "10.77.0.3"]
    node.delete(theirs, first)
    node.delete(ours, second)
    assert (node.leases(), node.records()) == ([], [])


def test_delegate_must_be_a_truth_value(node: Node) -> None:
    done = node.run("ADD", node.conf(ipam=node.host_local(delegate="no")), node.pod())
    assert (done.status, done.json["code"]) == (1, 7)
    assert "delegate" in done.json["msg"]
    assert node.records() == []
