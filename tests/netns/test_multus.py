"""Three attachments of one pod on one network, as Multus requests them: each gets its own VF."""

from __future__ import annotations

from typing import Any

import pytest

from harness.multus import NAMESPACED, Multus, thick, thin
from harness.runtime import Outcome
from harness.veth import MakeNode, Node

NETS = ("net1", "net2", "net3")
pytestmark = pytest.mark.modes("process", "resident", "deferred")


@pytest.fixture
def node(make_node: MakeNode) -> Node:
    """A node with as many VFs as the pod requests."""
    node = make_node(vfs=len(NETS))
    node.allow(CNIDeviceInfoFile=[node.root / "devinfo/cni"])
    return node


def network(node: Node, **more: Any) -> dict[str, Any]:
    """Return the configuration of the NetworkAttachmentDefinition."""
    capabilities = {"deviceID": True, "mac": True, "ips": True, "CNIDeviceInfoFile": True}
    ipam = node.host_local(delegate=False, routes=[{"dst": "10.9.0.0/16"}])
    # a network of the Kubernetes operator; its log levels begin with "panic"
    given = {"capabilities": capabilities, "ipam": ipam, "logLevel": "panic"}
    return node.conf(cniVersion="1.1.0", name="sriov-net", **given | more)


def devices(node: Node, by: str) -> list[str]:
    """Return the devices that the device plugin has allocated, or none."""
    return [node.tree.pci(index) if by == "deviceID" else "" for index in range(len(NETS))]


def attach(node: Node, multus: Multus, by: str) -> None:
    """Attach all; check that each has its own VF, MAC and address, and the requested device."""
    before, asked = node.state(), devices(node, by)
    done = multus.attach(network(node, **({"master": None} if by == "deviceID" else {})), asked)
    assert [outcome.status for outcome in done] == [0, 0, 0], done
    records = {name.split("~")[2]: name.split("~")[0] for name in node.records()}
    assert records.keys() == set(NETS)
    assert sorted(records.values()) == devices(node, "deviceID")
    if by == "deviceID":
        assert [records[ifname] for ifname in NETS] == asked
        info = node.root / "devinfo/cni"
        assert len(list(info.glob(f"{NAMESPACED.replace('/', '-')}-*_net?"))) == len(NETS)
    pod = node.pods[-1]
    named = {node.tree.pci(index): node.tree.netdev(index) for index in range(len(NETS))}
    for ifname in NETS:
        assert node.link(ifname, pod)["address"] == before[named[records[ifname]]]["address"]
    addresses = [each.partition("/")[0] for name in NETS for each in node.addresses(name, pod)]
    assert sorted(addresses) == node.leases("sriov-net")
    assert node.state() == {}


def succeeded(done: list[Outcome]) -> bool:
    """Return whether all calls succeeded without a warning of the keys that Multus repeats in CNI_ARGS."""
    assert not [outcome for outcome in done if "CNI_ARGS" in outcome.stderr]
    return [(outcome.status, outcome.stdout) for outcome in done] == [(0, b"")] * len(NETS)


def is_as_before(node: Node, before: Any) -> None:
    node.homed()
    left = (node.state(), node.records(), node.leases("sriov-net"), node.locks())
    assert left == (before, [], [], [])
    assert not list((node.root / "devinfo").glob("cni/*"))


@pytest.mark.parametrize(("form", "by"), [("thin", "pool"), ("thin", "deviceID"), ("thick", "deviceID")])
def test_three_attachments_in_parallel(node: Node, form: str, by: str) -> None:
    before, multus = node.state(), Multus(node, node.pod(), form)
    attach(node, multus, by)
    assert succeeded(multus.check())
    assert succeeded(multus.detach())
    is_as_before(node, before)
    assert succeeded(multus.detach())  # the first DEL has removed the cached results
    is_as_before(node, before)
    multus = Multus(node, node.pod(), form)
    attach(node, multus, by)
    assert succeeded(multus.detach())


@pytest.mark.parametrize("is_told", [True, False])
def test_del_after_the_namespace(node: Node, is_told: bool) -> None:
    """A DEL succeeds if CNI_NETNS names a deleted namespace, or is empty after a runtime's restart."""
    before, pod = node.state(), node.pod()
    multus = Multus(node, pod, "thin")
    attach(node, multus, "pool")
    end(node, pod)
    multus.netns = multus.netns if is_told else ""
    assert succeeded(multus.detach())
    assert succeeded(multus.detach())
    is_as_before(node, before)


def test_del_without_the_path_of_a_living_namespace(node: Node) -> None:
    before, multus = node.state(), Multus(node, node.pod(), "thin")
    attach(node, multus, "deviceID")
    multus.netns = ""
    assert succeeded(multus.detach())
    is_as_before(node, before)


def test_an_attachment_without_a_free_vf(node: Node) -> None:
    """After a failed ADD, Multus deletes all attachments, including the failed one."""
    before, multus = node.state(), Multus(node, node.pod(), "thin")
    node.nip("addr", "add", "192.0.2.1/24", "dev", node.tree.netdev(1))
    done = multus.attach(network(node), devices(node, "pool"))
    assert sorted(outcome.status for outcome in done) == [0, 0, 1], done
    (failed,) = (outcome for outcome in done if outcome.status)
    assert failed.json["code"] == 11
    assert succeeded(multus.detach())
    node.nip("addr", "del", "192.0.2.1/24", "dev", node.tree.netdev(1))
    is_as_before(node, before)


def end(node: Node, pod: str) -> None:
    """End a pod's namespace.

    The pod's devices are moved before: the kernel would return a VF, but deletes a veth.
    """
    for name in node.records():
        pci, _, ifname = name.split("~")
        index = next(index for index in range(len(NETS)) if node.tree.pci(index) == pci)
        node.return_device(pod, ifname=ifname, index=index)
    node.end(pod)


MAC = "02:11:22:33:44:55"


@pytest.mark.modes("resident")
def test_one_value_twice_is_one(node: Node) -> None:
    """CNI_ARGS may repeat a key with the same value: CRI-O sets IP and MAC, Multus appends its own."""
    pod = node.pod()
    conf = node.conf(ipam=node.host_local(delegate=False))
    args = f"VF=1;IP=10.77.0.9;MAC={MAC};{thin(pod)};MAC={MAC};IP=10.77.0.9;VF=1"
    # a veth has no VFs: the kernel refuses the MAC, not the parser
    node.refused(100, "ADD", conf, pod, args=args)
    node.add(conf, pod, args=args.replace(f"MAC={MAC};", ""))
    assert node.addresses("eth0", pod) == ["10.77.0.9/24"]
    assert node.record().name.startswith(node.tree.pci(1))
    node.delete(conf, pod)


@pytest.mark.modes("resident")
def test_addresses_that_an_annotation_asks_for(node: Node) -> None:
    """``IP`` may list addresses with commas, as Multus writes those of its annotation."""
    pod = node.pod()
    ipam = node.host_local(delegate=False, ranges=[[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]])
    conf = node.conf(ipam={k: v for k, v in ipam.items() if k != "subnet"})
    node.add(conf, pod, args=f"{thin(pod)};IP=10.77.0.9/24,fd77::9/64")
    assert node.addresses("eth0", pod) == ["10.77.0.9/24", "fd77::9/64"]
    node.delete(conf, pod)
    assert node.leases() == []


@pytest.mark.modes("resident")
def test_a_mac_in_two_places(node: Node) -> None:
    """The thick plugin passes the annotation's MAC in CNI_ARGS and in runtimeConfig."""
    pod = node.pod()
    more = {"ifname": "net1", "args": f"{thick(pod)};MAC={MAC}"}
    conf = network(node, runtimeConfig={"deviceID": node.tree.pci(0), "mac": MAC})
    text = node.refused(100, "ADD", conf, pod, **more)
    assert MAC in text  # the kernel refuses the MAC, since a veth has no VFs
    node.delete(conf, pod, **more)
