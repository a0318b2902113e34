"""The built-in host-local and static: no second process, the same store."""

from __future__ import annotations

from typing import Any

import pytest

from harness.veth import Node

pytestmark = pytest.mark.modes("resident")


def own(node: Node, **more: Any) -> dict[str, Any]:
    """Return an ``ipam`` object for the built-in host-local."""
    return node.host_local(delegate=False, **more)


@pytest.fixture
def alone(node: Node) -> Node:
    """A node without any IPAM plugin."""
    node.search = str(node.root / "nothing")
    return node


def test_newest_version(alone: Node) -> None:
    """The built-in host-local supports CNI 1.1.0; Debian's plugin does not."""
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


def test_gc_uses_the_configuration_of_the_attach(alone: Node) -> None:
    """GC frees the address in the store that the ADD used, not in the store of GC's own configuration."""
    conf = alone.conf(cniVersion="1.1.0", ipam=own(alone))
    alone.add(conf, alone.pod())
    other = conf | {"ipam": own(alone) | {"dataDir": str(alone.root / "elsewhere")}}
    assert alone.run("GC", other | {"cni.dev/valid-attachments": []}).status == 0
    assert (alone.leases(), alone.records()) == ([], [])


def test_del_reads_the_recorded_address_alone(alone: Node) -> None:
    """An unreadable address file of another pod does not keep a DEL from freeing its own address."""
    conf, pod = alone.conf(ipam=own(alone)), alone.pod()
    alone.add(conf, pod)
    other = alone.root / "ipam/net1/10.77.0.9"
    other.symlink_to("/nowhere")  # the store follows no symbolic links: reading the file is an error
    alone.delete(conf, pod)
    assert alone.leases() == ["10.77.0.9"]
    other.unlink()
