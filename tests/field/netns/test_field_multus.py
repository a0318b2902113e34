"""What Multus sends to a delegate, byte for byte: 301 and 302.

Multus (pkg/types/conf.go, ``newCNIRuntimeConf``) puts its own five arguments in front of those that it was
given, and appends MAC and IP of the annotation (pkg/multus/multus.go, ``DelegateAdd``). The thick plugin's
daemon was given none, and does not know the sandbox's ID. libcni writes the configuration anew: sorted keys,
no spaces.
"""

from __future__ import annotations

import json

import pytest

from harness.multus import thick, thin
from harness.veth import Node

pytestmark = pytest.mark.modes("resident")

MAC = "02:11:22:33:44:55"
# As the Kubernetes operator renders a network, whose levels of logging begin with "panic".
BEFORE_IPAM = (
    '{"capabilities":{"deviceID":true,"mac":true},"cniVersion":"1.0.0",'
    '"deviceID":"%(pci)s","ipam":{"dataDir":"%(root)s/ipam","routes":[{"dst":"10.9.0.0/16"}],"subnet":"10.77.0.0/24",'
    '"type":"host-local"},"logLevel":"panic","name":"sriov-net","pciBusID":"%(pci)s",'
)
PREV = (
    '"prevResult":{"cniVersion":"1.0.0","dns":{},"interfaces":[{"mac":"%(mac)s","name":"net1",'
    '"sandbox":"/run/netns/%(pod)s"}],"ips":[{"address":"10.77.0.2/24","gateway":"10.77.0.1","interface":0}],'
    '"routes":[{"dst":"10.9.0.0/16"}]},'
)
RUNTIME = '"runtimeConfig":{"deviceID":"%(pci)s"},"type":"sriov"}'
ASKED = '"runtimeConfig":{"deviceID":"%(pci)s","mac":"%(mac)s"},"type":"sriov"}'


def stdin(node: Node, template: str, pod: str, mac: str) -> bytes:
    names = {"pci": node.tree.pci(0), "root": node.root, "pod": pod, "mac": mac}
    return (template % names).encode()


@pytest.mark.parametrize("args", [thin, thick])
def test_301_keys_that_multus_repeats(node: Node, args: object) -> None:
    """Multus hands every key of Kubernetes over twice: no verb refuses that."""
    pod = node.pod()
    text = args(pod)  # type: ignore[operator]
    conf = node.conf(ipam=node.host_local(delegate=False), vf=0)
    node.add(conf, pod, args=text)
    done = node.run("CHECK", conf, pod, args=text)
    assert done.status == 0, done
    deleted = node.delete(conf, pod, args=text)
    assert "CNI_ARGS" not in deleted.stderr
    assert (node.records(), node.leases()) == ([], [])


@pytest.mark.parametrize("key", ["VF", "VLAN", "MAC", "CORES", "PodID", "HostIP", "IP", "GATEWAY"])
def test_301_two_values_of_a_key_of_ours_are_refused(node: Node, key: str) -> None:
    """Of two different values for one decision none is better: the ADD names both."""
    before = node.snapshot()
    text = node.refused(4, "ADD", node.conf(), node.pod(), args=f"{key}=1;IgnoreUnknown=1;{key.lower()}=2")
    assert f"{key.lower()}='2'" in text
    assert "'1'" in text
    assert node.snapshot()["vfs"] == before["vfs"]


def test_301_one_value_twice_is_one(node: Node) -> None:
    """CRI-O gives the pod's IP and MAC, and Multus appends those of its annotation: here the same."""
    pod = node.pod()
    conf = node.conf(ipam=node.host_local(delegate=False))
    args = f"VF=1;IP=10.77.0.9;MAC={MAC};{thin(pod)};MAC={MAC};IP=10.77.0.9;VF=1"
    # veth has no VFs, so the MAC must be refused by the kernel, and not by the parser
    node.refused(100, "ADD", conf, pod, args=args)
    node.add(conf, pod, args=args.replace(f"MAC={MAC};", ""))
    assert node.addresses("eth0", pod) == ["10.77.0.9/24"]
    assert node.record().name.startswith(node.tree.pci(1))
    node.delete(conf, pod)


def test_301_addresses_that_an_annotation_asks_for(node: Node) -> None:
    """Multus writes the addresses of its annotation with commas between them."""
    pod = node.pod()
    ipam = node.host_local(delegate=False, ranges=[[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]])
    conf = node.conf(ipam={k: v for k, v in ipam.items() if k != "subnet"})
    node.add(conf, pod, args=f"{thin(pod)};IP=10.77.0.9/24,fd77::9/64")
    assert node.addresses("eth0", pod) == ["10.77.0.9/24", "fd77::9/64"]
    node.delete(conf, pod)
    assert node.leases() == []


def test_302_what_multus_sends(node: Node) -> None:
    """ADD, CHECK and DEL of a network attachment, as the thin plugin hands them over."""
    pod = node.pod()
    container = "3f6940ab5ab43bc522569d15b23f8c1bbde1d7678b080398506924fc01d72755"
    more = {"ifname": "net1", "container": container, "args": thin(container)}
    before = node.state()
    added = node.run("ADD", stdin(node, BEFORE_IPAM + RUNTIME, pod, ""), pod, **more)  # type: ignore[arg-type]
    assert added.status == 0, added
    mac = added.json["interfaces"][0]["mac"]
    prev = json.loads(stdin(node, "{" + PREV[:-1] + "}", pod, mac))["prevResult"]
    assert added.json == prev
    for verb in ("CHECK", "DEL", "DEL"):
        done = node.run(verb, stdin(node, BEFORE_IPAM + PREV + RUNTIME, pod, mac), pod, **more)  # type: ignore[arg-type]
        assert (done.status, done.stdout) == (0, b""), done
    node.homed()
    assert (node.records(), node.leases("sriov-net"), node.state()) == ([], [], before)


def test_302_what_the_thick_plugin_sends(node: Node) -> None:
    """The thick plugin's daemon knows no sandbox ID, and asks for the MAC of the annotation in two places."""
    pod = node.pod()
    args = f"{thick(pod)};MAC={MAC}"
    text = node.refused(100, "ADD", stdin(node, BEFORE_IPAM + ASKED, pod, MAC), pod, ifname="net1", args=args)
    assert MAC in text  # read from both, and asked of the kernel, which has no VFs here
    done = node.run("DEL", stdin(node, BEFORE_IPAM + ASKED, pod, MAC), pod, ifname="net1", args=thick(pod))
    assert (done.status, done.stdout) == (0, b""), done
