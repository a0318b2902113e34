"""ADD and DEL with real IPAM plugins: the pod's interface, the printed result, the restored VF."""

from __future__ import annotations

import json
from typing import Any

import pytest

from harness.sysfs_tree import build_tree
from harness.veth import MakeNode, Node, said

pytestmark = pytest.mark.modes("process", "resident")

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
LEGACY = ("0.1.0", "0.2.0")
TAGGED = ("0.3.0", "0.3.1", "0.4.0")


def static(*addresses: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "static", "addresses": list(addresses), **more}


def answering(node: Node, **body: Any) -> dict[str, Any]:
    """Install an IPAM plugin that answers every ADD with ``body``; return the ``ipam`` object."""
    return node.other_ipam(ADD=said(body))


@pytest.mark.parametrize("version", [None, *VERSIONS])
def test_every_version_round_trip(node: Node, version: str | None) -> None:
    conf = node.conf(cniVersion=version, ipam=node.host_local(routes=[{"dst": "0.0.0.0/0"}]))
    if version == "1.1.0":  # Debian's host-local does not support 1.1.0
        ips = [{"address": "10.77.0.2/24", "gateway": "10.77.0.1"}]
        conf["ipam"] = answering(node, cniVersion=version, ips=ips, routes=[{"dst": "0.0.0.0/0"}])
    before, pod = node.state(), node.pod()
    found = node.add(conf, pod)
    mac = before["pf0v0"]["address"]
    head: dict[str, Any] = {"cniVersion": version} if version else {}
    ip: dict[str, Any] = {"address": "10.77.0.2/24", "gateway": "10.77.0.1", "interface": 0}
    interface: dict[str, Any] = {"name": "eth0", "mac": mac, "sandbox": f"/run/netns/{pod}"}
    if version is None or version in LEGACY:
        route = {"dst": "0.0.0.0/0"}
        ip4 = {"ip": "10.77.0.2/24", "gateway": "10.77.0.1", "routes": [route]}
        expected = head | {"ip4": ip4, "dns": {}}
    else:
        if version in TAGGED:
            ip = {"version": "4"} | ip
        if version == "1.1.0":
            interface |= {"mtu": 1500, "pciID": node.tree.pci(0)}
        body = {"interfaces": [interface], "ips": [ip], "routes": [{"dst": "0.0.0.0/0"}], "dns": {}}
        expected = head | body
    assert found == expected
    if version in ("0.4.0", "1.0.0", "1.1.0"):
        node.check(conf, pod, found)
    node.delete(conf | ({} if version is None else {"prevResult": found}), pod)
    assert (node.state(), node.leases(), node.records(), node.locks()) == (before, [], [], [])


@pytest.mark.parametrize("version", ["0.1.0", "1.1.0"])
def test_no_ipam(either: Node, version: str) -> None:
    node, before, pod = either, either.state(), either.pod()
    found = node.add(node.conf(cniVersion=version), pod)
    if version == "0.1.0":
        assert found == {"cniVersion": "0.1.0", "dns": {}}
    else:
        assert [item["name"] for item in found["interfaces"]] == ["eth0"]
        assert "ips" not in found
    assert "UP" in node.link("eth0", pod)["flags"]
    assert node.addresses("eth0", pod) == []
    node.delete(node.conf(cniVersion=version), pod)
    assert node.state() == before


def test_dual_stack_where_ipv6_is_off(either: Node) -> None:
    """An ADD sets an IPv6 address although runtimes disable IPv6 in new namespaces."""
    node, before, pod = either, either.state(), either.pod()
    switch = "/proc/sys/net/ipv6/conf/{}/disable_ipv6"
    for name in ("all", "default"):
        node.ip("netns", "exec", pod, "sh", "-c", f"echo 1 > {switch.format(name)}")
    four = {"address": "10.1.0.2/24", "gateway": "10.1.0.1"}
    six = {"address": "fd00:1::2/64", "gateway": "fd00:1::1"}
    conf = node.conf(ipam=static(four, six, routes=[{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]))
    found = node.add(conf, pod)
    assert [item["address"] for item in found["ips"]] == ["10.1.0.2/24", "fd00:1::2/64"]
    assert node.addresses("eth0", pod) == ["10.1.0.2/24", "fd00:1::2/64"]
    assert node.routes(pod, "default")[0]["gateway"] == "10.1.0.1"
    assert node.routes(pod, "default", family="-6")[0]["gateway"] == "fd00:1::1"
    node.check(conf, pod, found)
    node.delete(conf, pod)
    assert node.state() == before


def test_routes_with_every_attribute_and_dns_of_the_configuration(either: Node) -> None:
    node, pod = either, either.pod()
    routes = [
        {"dst": "192.0.2.0/24", "gw": "10.1.0.9", "mtu": 1400, "advmss": 1360, "priority": 7, "table": 1000},
        {"dst": "198.51.100.0/24", "scope": 253},
        {"dst": "203.0.113.0/24"},
    ]
    ips, ours = [{"address": "10.1.0.2/24", "gateway": "10.1.0.1"}], {"nameservers": ["192.0.2.53"]}
    ipam = answering(node, ips=ips, routes=routes, dns={"domain": "b.example"})
    conf = node.conf(cniVersion="1.1.0", ipam=ipam, dns=ours)
    found = node.add(conf, pod)
    assert (found["routes"], found["dns"]) == (routes, ours)
    (full,) = node.routes(pod, "table", "1000")
    assert (full["dst"], full["gateway"], full["metric"]) == ("192.0.2.0/24", "10.1.0.9", 7)
    assert full["metrics"] == [{"mtu": 1400, "advmss": 1360}]
    by_dst = {route["dst"]: route for route in node.routes(pod)}
    assert "gateway" not in by_dst["198.51.100.0/24"]
    assert by_dst["198.51.100.0/24"]["scope"] == "link"
    assert by_dst["203.0.113.0/24"]["gateway"] == "10.1.0.1"
    node.check(conf, pod, found)
    node.delete(conf, pod)


def test_a_previous_result_is_kept_in_front(node: Node) -> None:
    pod = node.pod()
    earlier = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "net1", "mac": "02:00:00:00:00:99", "sandbox": f"/run/netns/{pod}"}],
        "ips": [{"address": "192.0.2.9/24", "interface": 0}],
        "routes": [{"dst": "192.0.2.0/24"}],
        "dns": {"domain": "earlier.example"},
    }
    conf = node.conf(prevResult=earlier, ipam=node.host_local(), dns={"nameservers": ["192.0.2.53"]})
    found = node.add(conf, pod)
    assert [item["name"] for item in found["interfaces"]] == ["net1", "eth0"]
    assert [(item["address"], item["interface"]) for item in found["ips"]] == [
        ("192.0.2.9/24", 0),
        ("10.77.0.2/24", 1),
    ]
    assert found["routes"] == [{"dst": "192.0.2.0/24"}]
    assert found["dns"] == {"domain": "earlier.example", "nameservers": ["192.0.2.53"]}
    node.check(conf, pod, found)


@pytest.mark.modes("process", "resident", "deferred")
def test_mtu_and_what_was_up_before(either: Node) -> None:
    node = either
    node.nip("link", "set", "pf0v0", "mtu", "1300", "up")
    node.nip("link", "set", "pf0v1", "mtu", "1350")
    before, pods = node.state(), [node.pod(), node.pod()]
    conf = node.conf(mtu=1450, cniVersion="1.1.0")
    assert [node.add(conf, pod)["interfaces"][0]["mtu"] for pod in pods] == [1450, 1450]
    assert [node.link("eth0", pod)["mtu"] for pod in pods] == [1450, 1450]
    for pod in pods:
        node.delete(conf, pod)
    assert (before["pf0v0"]["mtu"], before["pf0v0"]["flags"]) == (1300, ["MULTICAST", "UP"])
    assert node.state() == before
    node.add(node.conf(vf=0), pods[0])
    assert node.link("eth0", pods[0])["mtu"] == 1300, "without a request the VF keeps its own"


IPAM: dict[str, Any] = {"ipam": {"type": "txipam", "delegate": True}}


@pytest.mark.parametrize(
    ("more", "args", "extra", "given"),
    [
        ({"vf": 1}, "", {}, 1),
        ({"vf": 0}, "vf=1", {}, 1),
        ({"vf": 1}, "VF=0", {}, 0),
        ({"master": None, "deviceID": "0000:01:10.1"}, "", {}, 1),
        ({"deviceID": "0000:01:10.0", "runtimeConfig": {"deviceID": "0000:01:10.1"}}, "", {}, 1),
        ({"vf": 0} | IPAM, "", {"vf": 1}, 1),
        ({"vf": 1} | IPAM, "", {"vf": None}, 1),
    ],
    ids=str,
)
def test_the_vf_that_was_asked_for(
    node: Node, more: dict[str, Any], args: str, extra: dict[str, Any], given: int
) -> None:
    """Configuration, CNI_ARGS, device ID and IPAM can choose the VF; the later in this order wins.

    VF 0 is a choice like any other.
    """
    answering(node, ips=[{"address": "10.1.0.2/24"}], extra=extra)
    conf = node.conf(cniVersion="1.1.0", **more)
    pci = node.tree.pci(given)
    assert node.add(conf, node.pod(), args=args)["interfaces"][0]["pciID"] == pci
    assert node.records()[0].startswith(pci)
    assert set(node.state()) == {node.tree.netdev(1 - given)}


def test_ipam_that_may_choose_runs_before_a_vf_is_touched(node: Node) -> None:
    show = f'ls {node.run_dir}/vfs > "$ROOT/records" 2>/dev/null'
    node.add(node.conf(ipam=node.other_ipam(ADD=f"{show}; {said({'ips': []})}")), node.pod())
    assert (node.root / "records").read_text() == ""


def test_a_delegate_gets_what_it_needs(node: Node) -> None:
    ipam = node.other_ipam(ADD=f'cat > "$ROOT/stdin"; env > "$ROOT/env"; {said({"ips": []})}')
    conf, pod = node.conf(ipam=ipam | {"remote": "x"}), node.pod()
    assert "ips" not in node.add(conf, pod, args="PodID=1;K8S_POD_NAME=p")
    assert node.addresses("eth0", pod) == []
    assert json.loads((node.root / "stdin").read_text()) == conf
    lines = (node.root / "env").read_text().splitlines()
    wanted = {
        "CNI_COMMAND=ADD",
        f"CNI_CONTAINERID={pod}",
        f"CNI_NETNS=/run/netns/{pod}",
        "CNI_IFNAME=eth0",
        "CNI_ARGS=IgnoreUnknown=1;PodID=1;K8S_POD_NAME=p",
    }
    assert wanted <= set(lines)


@pytest.mark.modes("process", "resident", "deferred")
def test_two_interfaces_of_one_pod(node: Node) -> None:
    """Two ADDs with one container ID attach two VFs; each DEL releases the VF of its interface name."""
    before, pod, conf = node.state(), node.pod(), node.conf(ipam=node.host_local())
    node.add(conf, pod, ifname="net1")
    node.add(conf, pod, ifname="net2")
    assert len(node.records()) == len(node.leases()) == 2
    node.delete(conf, pod, ifname="net1")
    assert node.addresses("net2", pod) == ["10.77.0.3/24"]
    node.delete(conf, pod, ifname="net2")
    assert (node.state(), node.leases()) == (before, [])


def test_an_index_that_the_pod_uses_already(either: Node) -> None:
    """The kernel gives the VF a new index; the ADD sets no address on the device with the old index."""
    node, pod = either, either.pod()
    index = node.link("pf0v0")["ifindex"]
    words = ("link", "add", "other", "index", str(index), "type", "veth", "peer", "name", "its-peer")
    node.ip("-n", pod, *words)
    found = node.add(node.conf(ipam=static({"address": "10.1.0.2/24"}), vf=0), pod)
    assert found["ips"][0]["address"] == "10.1.0.2/24"
    assert node.addresses("eth0", pod) == ["10.1.0.2/24"]
    assert node.addresses("other", pod) == []
    now = node.link("eth0", pod)["ifindex"]
    assert now != index
    record = json.loads(node.record().read_bytes())
    written = record["state"], record["ifindex"], record["addresses"]
    assert written == ("attached", now, ["10.1.0.2/24"]), "not what was expected before the move"


@pytest.mark.modes("process", "resident", "deferred")
def test_a_name_that_both_sides_know(node: Node) -> None:
    """The pod has a device with the VF's name in the host, and the host one with its name in the pod."""
    node.nip("link", "add", "eth0", "type", "veth", "peer", "name", "eth0-peer")
    pod, before = node.pod(), node.state()
    node.ip("-n", pod, "link", "add", "pf0v0", "type", "veth", "peer", "name", "p")
    node.add(node.conf(vf=0), pod)
    assert node.link("eth0", pod)["address"] == before["pf0v0"]["address"]
    node.delete(node.conf(vf=0), pod)
    assert node.state() == before
    assert node.link("pf0v0", pod)["address"] != before["pf0v0"]["address"]


def two_pfs(make_node: MakeNode, numa: int) -> Node:
    """Return a node with two PFs, each with one VF; ``numa`` is the NUMA node of the second PF."""
    node = make_node(vfs=1)
    build_tree(node.root / "tree", pf="pf1", vfs=1, pf_pci="0000:02:00.0", numa=numa)
    node.nip("link", "add", "pf1", "type", "veth", "peer", "name", "pf1-peer")
    node.nip("link", "add", "pf1v0", "type", "veth", "peer", "name", "pf1-vf-peer")
    return node


def test_masters_in_order(make_node: MakeNode) -> None:
    """An ADD attaches a VF of the first PF in ``master`` that has a free VF."""
    node = two_pfs(make_node, numa=0)
    conf = node.conf(master=["pf1", "pf0"], cniVersion="1.1.0")
    pods = [node.pod(), node.pod(), node.pod()]
    given = [node.add(conf, pod)["interfaces"][0]["pciID"] for pod in pods[:2]]
    assert given == ["0000:02:10.0", "0000:01:10.0"]
    assert "pf1 (1 VFs), pf0 (1 VFs)" in node.refused(11, "ADD", conf, pods[2])


def test_the_pf_near_the_cores_comes_first(make_node: MakeNode) -> None:
    node = two_pfs(make_node, numa=1)
    for core, numa in ((1, 0), (5, 1)):
        (node.tree.sys / f"devices/system/cpu/cpu{core}/node{numa}").mkdir(parents=True)
    conf = node.conf(master=["pf0", "pf1"], cniVersion="1.1.0")
    assert node.add(conf, node.pod(), args="CORES=5")["interfaces"][0]["pciID"] == "0000:02:10.0"


def test_the_log_says_who_and_what(node: Node) -> None:
    pod, file = node.pod(), node.root / "log"
    done = node.run("ADD", node.conf(logFile=str(file), logLevel="info"), pod)
    (line,) = done.stderr.splitlines()
    for part in ("level=info", "msg=attached", f"containerID={pod}", "ifname=eth0", "network=net1", "vf=0"):
        assert part in line
    assert file.read_text() == f"{line}\n"
