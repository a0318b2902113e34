"""A VF comes home exactly as it was: flags, queues, names, offloads and programs of its device included."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from harness import devices
from harness.pod import links
from harness.veth import Node, ResidentNode
from harness.waiting import wait_for

pytestmark = [
    pytest.mark.modes("resident", "deferred"),
    pytest.mark.fresh,  # programs stay on the device
]

GRO, GSO, TSO, SG, TX = 0x2C, 0x24, 0x1F, 0x19, 0x17  # ETHTOOL_S*


LINK_CHANGES = [
    "promisc on",
    "allmulticast on",
    "arp off",
    "multicast off",
    "txqueuelen 7",
    "alias left-behind",
    "group 5",
    "mode dormant",
    "broadcast 02:ff:ff:ff:ff:ff",
    "gso_max_size 4000",
    "gso_max_segs 17",
    "gro_max_size 3000",
    "mtu 1400",
    "address 02:00:00:00:00:66",
]


def in_pod(node: Node, pod: str, *lines: str) -> None:
    for line in lines:
        node.ip("-n", pod, *line.split())


def names_in(pod: str) -> set[str]:
    return {item["ifname"] for item in links(pod)}


def altnames(node: Node, name: str) -> list[str]:
    found: list[str] = node.link(name).get("altnames", [])
    return found


def is_released(node: Node, before: dict[str, Any]) -> None:
    node.homed()
    assert (node.state(), node.records(), node.leases()) == (before, [], [])


def test_all_settings_at_once(either: Node) -> None:
    """The pod changes everything, and the next pod gets the device as the operator had it."""
    node = either
    node.nip("link", "set", "dev", "pf0v0", "txqueuelen", "500", "alias", "the operator's", "group", "9")
    node.nip("link", "property", "add", "dev", "pf0v0", "altname", "one", "altname", "two")
    node.nip("link", "set", "dev", "pf0v0", "addrgenmode", "none", "allmulticast", "on")
    before, pod = node.state(), node.pod()
    node.add(node.conf(), pod)
    for change in (*LINK_CHANGES, "allmulticast off"):
        in_pod(node, pod, f"link set dev eth0 {change}")
    in_pod(
        node,
        pod,
        "address add 192.0.2.1/24 dev eth0",
        "link property del dev eth0 altname one",
        "link property add dev eth0 altname three",
    )
    for command in (GSO, TSO, SG, TX):
        devices.switch(pod, "eth0", command, 0)
    devices.switch(pod, "eth0", GRO, 1)
    node.delete(node.conf(), pod)
    is_released(node, before)


@pytest.mark.parametrize("how", ["generic", "driver"])
def test_an_xdp_program(node: Node, how: str) -> None:
    """The pod attaches an XDP program, and the next pod's packets go through it."""
    before, pod = node.state(), node.pod()
    node.add(node.conf(), pod)
    devices.attach_xdp(pod, "eth0", how)
    assert "xdp" in json.loads(node.ip("-j", "-n", pod, "link", "show", "dev", "eth0"))[0]
    node.delete(node.conf(), pod)
    is_released(node, before)


def test_an_xdp_program_that_forbids_the_old_mtu(node: Node) -> None:
    """The pod lowers the MTU and attaches an XDP program, with which the driver takes no large MTU."""
    node.nip("link", "set", "dev", "pf0v0", "mtu", "9000")
    before, pod = node.state(), node.pod()
    node.add(node.conf(mtu=1500), pod)
    devices.attach_xdp(pod, "eth0", "driver")
    done = node.delete(node.conf(), pod)
    is_released(node, before)
    assert "level=warning" not in done.stderr


def test_a_program_of_the_operator_stays(node: Node) -> None:
    """What the operator attached to the VF is no business of a pod that leaves it alone."""
    devices.attach_xdp(node.host, "pf0v0", "generic")
    before, pod = node.state(), node.pod()
    node.add(node.conf(), pod)
    node.delete(node.conf(), pod)
    is_released(node, before)
    assert before["pf0v0"]["xdp"]


@pytest.mark.modes("deferred")
@pytest.mark.parametrize("hook", ["ingress", "egress"])
@pytest.mark.parametrize("how", ["by program", "by link"])
def test_a_program_of_tcx(either: Node, hook: str, how: str) -> None:
    """The pod attaches a program of tcx, which rtnetlink does not show, and the next pod meets it."""
    node, pod = either, either.pod()
    if not devices.tcx(node.host, "pf0v0"):
        pytest.skip("the kernel has no tcx (Linux 6.6)")
    devices.attach_tcx(node.host, "pf0v0", "ingress")  # the operator's stays
    node.add(node.conf(), pod)
    held = devices.hold(pod, "eth0", hook) if how == "by link" else -1
    if held < 0:
        devices.attach_tcx(pod, "eth0", hook)
    assert sum(devices.tcx(pod, "eth0")) == 2
    node.delete(node.conf(), pod)
    node.homed()
    assert devices.tcx(node.host, "pf0v0") == [1, 0]
    if held >= 0:
        os.close(held)


def test_an_xdp_program_that_a_link_holds(either: Node) -> None:
    """The pod holds its XDP program by a pinned bpf_link, which netlink cannot detach."""
    node, before, pod = either, either.state(), either.pod()
    node.add(node.conf(), pod)
    held = devices.hold(pod, "eth0", "xdp")
    done = node.delete(node.conf(), pod)
    node.homed()
    os.close(held)
    assert node.state() == before
    assert "differs from before" not in done.stderr


def test_queue_disciplines_go_with_the_move(node: Node) -> None:
    """The pod shapes and filters its traffic; the kernel itself takes that away when the device moves."""
    pod = node.pod()
    node.add(node.conf(), pod)
    tc = ("netns", "exec", pod, "tc", "qdisc", "add", "dev", "eth0")
    node.ip(*tc, "clsact")
    node.ip(*tc, "root", "tbf", "rate", "1mbit", "burst", "10kb", "latency", "50ms")
    node.delete(node.conf(), pod)
    node.homed()
    left = json.loads(node.ip("netns", "exec", node.host, "tc", "-j", "qdisc", "show", "dev", "pf0v0"))
    assert [item["kind"] for item in left if item["kind"] in ("tbf", "clsact", "ingress")] == []


def test_a_failed_add_leaves_the_device_alone(node: Node) -> None:
    """The undo of an ADD restores as a DEL does: IPv6 address generation does not survive a move."""
    node.nip("link", "set", "dev", "pf0v0", "addrgenmode", "none", "txqueuelen", "500")
    before, pod = node.state(), node.pod()
    beyond = {"dst": "10.9.0.0/16", "gw": "192.168.1.1"}
    ipam = {"type": "static", "addresses": [{"address": "10.1.0.2/24"}], "routes": [beyond]}
    assert node.run("ADD", node.conf(ipam=ipam), pod).status == 1
    assert (node.state(), node.records()) == (before, [])


def test_gc_restores_as_a_del_does(node: Node) -> None:
    """GC brings home what a runtime forgot, and restores the same."""
    before, pod = node.state(), node.pod()
    node.add(node.conf(), pod)
    node.ip("-n", pod, "link", "set", "dev", "eth0", "promisc", "on", "alias", "left-behind")
    devices.switch(pod, "eth0", GRO, 1)
    node.collect(node.conf())
    is_released(node, before)


def test_nothing_is_set_where_nothing_differs(node: Node) -> None:
    """A pod that changed nothing costs its DEL no message that changes anything."""
    pod = node.pod()
    node.add(node.conf(), pod)
    record = json.loads(node.record().read_text())
    assert record["before_settings"]["txqlen"] == 1000
    assert record["before_ethtool"]["features"]
    done = node.delete(node.conf(), pod)
    node.homed()
    assert "differs from before" not in done.stderr


def test_a_vf_in_a_bridge_of_the_pod(either: Node) -> None:
    """A pod enslaved its VF: the master lets go of the VF before its settings are restored, and stays."""
    node, before, pod = either, either.state(), either.pod()
    node.add(node.builtin(mtu=1400), pod)
    in_pod(node, pod, "link add br0 type bridge", "link set eth0 master br0")
    node.delete(node.builtin(), pod)
    is_released(node, before)
    assert names_in(pod) == {"lo", "br0"}
    assert "master" not in node.link("pf0v0")


def test_devices_on_top_of_the_vf(either: Node) -> None:
    """A macvlan on the VF stayed alive after DEL and worked on the next pod's VF; others are left alone."""
    node, before, pod = either, either.state(), either.pod()
    node.add(node.builtin(), pod)
    in_pod(
        node,
        pod,
        "link add other type veth peer name other-peer",
        "link add link other name stays type macvlan",
        "link add link eth0 name one type macvlan mode bridge",
        "link add link eth0 name two type macvlan mode bridge",
        "link add link one name three type macvlan mode bridge",
    )
    node.delete(node.builtin(), pod)
    is_released(node, before)
    assert names_in(pod) == {"lo", "other", "other-peer", "stays"}


@pytest.mark.parametrize(
    ("names", "by"), [(["pf0"], "DEL"), (["pf0v0"], "DEL"), (["pf0", "pf0v1", "mine"], "GC")]
)
def test_an_altname_that_is_a_name_in_the_host(either: Node, names: list[str], by: str) -> None:
    """The release failed with EEXIST until the pod ended, so that a pod could keep its VF."""
    node, before, pod = either, either.state(), either.pod()
    node.add(node.builtin(), pod)
    for name in names:
        in_pod(node, pod, f"link property add dev eth0 altname {name}")
    if by == "DEL":
        node.delete(node.builtin(), pod)
    else:
        node.collect(node.builtin())
    is_released(node, before)
    assert altnames(node, "pf0v0") == []


def test_the_operators_altnames_come_back(either: Node) -> None:
    """A pod took an alternative name away, and gave another one."""
    node, pod = either, either.pod()
    for name in ("enp3s16", "enp3s16v0np0-which-is-a-long-one"):
        node.nip("link", "property", "add", "dev", "pf0v0", "altname", name)
    before, known = node.state(), altnames(node, "pf0v0")
    node.add(node.builtin(), pod)
    in_pod(
        node,
        pod,
        "link property del dev eth0 altname enp3s16",
        "link property add dev eth0 altname mine",
    )
    node.delete(node.builtin(), pod)
    is_released(node, before)
    assert sorted(altnames(node, "pf0v0")) == sorted(known)


def test_an_operators_altname_that_was_taken_meanwhile(either: Node) -> None:
    """Another device of the host has it now; the VF comes home without it."""
    node, pod = either, either.pod()
    node.nip("link", "property", "add", "dev", "pf0v0", "altname", "enp3s16")
    before = node.state()
    node.add(node.builtin(), pod)
    node.nip("link", "property", "add", "dev", "pf0", "altname", "enp3s16")
    node.delete(node.builtin(), pod)
    before["pf0v0"]["altnames"] = []
    is_released(node, before)
    assert altnames(node, "pf0") == ["enp3s16"]


def test_an_altname_that_clashes_in_the_pod(either: Node) -> None:
    """ADD said only that the namespace has an interface of the name CNI_IFNAME, which it had not."""
    node, pod = either, either.pod()
    node.nip("link", "property", "add", "dev", "pf0v0", "altname", "enp3s16")
    in_pod(node, pod, "link add enp3s16 type veth peer name p")
    before = node.snapshot()
    said = node.refused(101, "ADD", node.builtin(), pod)
    assert "altname 'enp3s16' of pf0v0" in said
    assert node.snapshot() == before


@contextmanager
def nameless(node: Node, pod: str, *, found: bool) -> Iterator[None]:
    """Delete a namespace's name while something holds it: a process, or just a descriptor."""
    node.tree.remove_netdev(0)
    with open(f"/run/netns/{pod}", "rb") as held:
        process = subprocess.Popen(
            ["nsenter", f"--net=/proc/self/fd/{held.fileno()}", "sleep", "300"], pass_fds=[held.fileno()]
        )
        wait_for(lambda: os.stat(f"/proc/{process.pid}/ns/net").st_ino == os.fstat(held.fileno()).st_ino, "")
        try:
            if found:
                (node.tree.proc / str(process.pid)).symlink_to(f"/proc/{process.pid}")
            node.ip("netns", "del", pod)
            yield
        finally:
            process.kill()
            process.wait()


def test_a_process_holds_the_namespace(either: Node) -> None:
    """The VF was forgotten in a namespace without a name, and its address went to the next pod."""
    node, before, pod = either, either.state(), either.pod()
    node.add(node.builtin(), pod)
    with nameless(node, pod, found=True):
        node.delete(node.builtin(), pod)
        is_released(node, before)


def lost(node: Node, pod: str, conf: dict[str, Any]) -> None:
    """Delete an attachment whose VF cannot be found."""
    done = node.run("DEL", conf, pod)
    assert done.status == 0, done
    assert "kept until the VF is found" in done.stderr
    assert node.records() == [f"{node.tree.pci(0)}~~{pod}~eth0"]
    assert (len(node.leases()), node.locks()) == (1, [])


@contextmanager
def kept(node: Node, pod: str) -> Iterator[str]:
    """Give a pod's namespace another name, that only the test knows."""
    name = f"{pod}-kept"
    node.tree.remove_netdev(0)
    subprocess.run(["touch", f"/run/netns/{name}"], check=True)
    subprocess.run(["mount", "--bind", f"/run/netns/{pod}", f"/run/netns/{name}"], check=True)
    node.ip("netns", "del", pod)
    try:
        yield name
    finally:
        node.ip("netns", "del", name)


@pytest.mark.parametrize("by", ["DEL", "GC", "ADD"])
def test_a_namespace_that_is_not_found(either: Node, by: str) -> None:
    """The VF and its address stay the pod's until the VF is back; then whoever comes first brings it home."""
    node, before, pod = either, either.state(), either.pod()
    conf = node.builtin()
    address = node.add(conf, pod)["ips"][0]["address"]
    with kept(node, pod) as namespace:
        lost(node, pod, conf)
        assert node.run("DEL", conf, pod).status == 0
        node.collect(conf)
        assert len(node.leases()) == 1
        other = node.pod()
        given = node.add(node.builtin(vf=1), other)["ips"][0]["address"]
        assert given != address
        assert node.run("DEL", node.builtin(vf=1), other).status == 0
        assert "not free" in node.refused(11, "ADD", conf, other)
        assert node.addresses("eth0", namespace) == [address]
        assert len(node.leases()) == 1
        # a stand-in's name in sysfs stays as it is told, and an ADD must find it there again
        node.return_device(namespace, "dev7" if by != "ADD" else "pf0v0")
        if by == "DEL":
            node.delete(conf, pod)
        elif by == "GC":
            node.collect(conf)
        else:
            node.add(conf, other)
            node.delete(conf, other)
        node.homed()
        assert (node.records(), node.leases()) == ([], [])
        assert node.state() == before


@pytest.mark.modes("resident")
def test_the_server_brings_it_home(node: ResidentNode) -> None:
    """Its upkeep does, without a request."""
    before, pod = node.state(), node.pod()
    conf = node.builtin()
    node.add(conf, pod)
    with kept(node, pod) as namespace:
        lost(node, pod, conf)
        node.return_device(namespace, "dev7")
        node.server.process.terminate()
        assert node.server.ended() == 0
        node.serve().ready()
        is_released(node, before)


def test_the_delegates_gc_spares_its_address(node: Node) -> None:
    """The real host-local is told that the attachment is valid until its VF is back."""
    pod, conf = node.pod(), node.builtin(ipam=node.host_local())
    node.add(conf, pod)
    with kept(node, pod):
        lost(node, pod, conf)
        node.collect(conf)
        assert len(node.leases()) == 1


def test_a_vf_that_really_is_gone(node: Node) -> None:
    """Then nothing can answer for the address, and it is given back at once."""
    pod, conf = node.pod(), node.builtin()
    node.add(conf, pod)
    with kept(node, pod):
        node.tree.vanish(0)
        done = node.delete(conf, pod)
        assert "no network device any more" in done.stderr
        assert (node.records(), node.leases()) == ([], [])


@pytest.mark.modes("process")
@pytest.mark.parametrize("driver", ["vfio-pci", ""])
def test_another_driver_is_bound(either: Node, driver: str) -> None:
    """A DEL waited 3 seconds for the network device of a VF whose driver makes none."""
    node, pod = either, either.pod()
    conf = node.builtin()
    node.add(conf, pod)
    node.tree.unbind(0)
    if driver:
        node.tree.bind(0, driver)
    node.ip("netns", "del", pod)
    node.prelude = "from sriov_fast.vf import find; find.RETURN_WAIT = 60"
    begin = time.monotonic()
    done = node.delete(conf, pod)
    assert time.monotonic() - begin < 30
    assert "no network device any more" in done.stderr
    assert (node.records(), node.leases()) == ([], [])
