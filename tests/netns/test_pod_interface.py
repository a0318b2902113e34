"""Sysctls and flags of the pod's interface."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.pod import read
from harness.veth import Node

pytestmark = pytest.mark.modes("resident")

SYSCTLS = {
    "net.ipv4.conf.IFNAME.rp_filter": "2",
    "net/ipv6/conf/IFNAME/accept_ra": "0",
    "net.ipv4.neigh.IFNAME.ucast_solicit": "5",
}
IPV6 = {"type": "static", "addresses": [{"address": "fd00::2/64"}]}


def sysctl(pod: str, name: str) -> str:
    return read(pod, f"/proc/sys/net/{name.replace('IFNAME', 'eth0')}")


@pytest.mark.parametrize("attach", ["move", "macvlan"])
@pytest.mark.parametrize("ipam", ["ipv4", "ipv6", "none"])
def test_what_is_always_set(either: Node, attach: str, ipam: str) -> None:
    """An ADD sets the same sysctls as the SR-IOV CNI of Kubernetes."""
    node, pod = either, either.pod()
    more = {"ipv4": {}, "ipv6": {"ipam": IPV6}, "none": {"ipam": None}}[ipam]
    node.add(node.builtin(attach=attach, **more), pod)
    assert sysctl(pod, "ipv4/conf/IFNAME/arp_notify") == "1"
    assert sysctl(pod, "ipv6/conf/IFNAME/ndisc_notify") == "1"
    assert sysctl(pod, "ipv6/conf/IFNAME/optimistic_dad") == "1"
    assert sysctl(pod, "ipv6/conf/IFNAME/keep_addr_on_down") == ("1" if ipam == "ipv6" else "0")


@pytest.mark.parametrize("attach", ["move", "macvlan"])
def test_the_loopback_stays_as_it_is(node: Node, attach: str) -> None:
    """An ADD does not change lo, which the runtime brings up, and keeps IPv6 enabled on it."""
    pod = node.pod()
    node.ip("-n", pod, "link", "set", "lo", "up")
    before = node.ip("-o", "-n", pod, "address", "show", "dev", "lo")
    conf = node.builtin(attach=attach, ipam=IPV6)
    node.add(conf, pod)
    assert "::1/128" in before
    assert node.ip("-o", "-n", pod, "address", "show", "dev", "lo") == before
    node.delete(conf, pod)
    assert node.ip("-o", "-n", pod, "address", "show", "dev", "lo") == before


@pytest.mark.parametrize("attach", ["move", "macvlan"])
def test_sysctls_and_flags(either: Node, attach: str) -> None:
    node, before, pod = either, either.state(), either.pod()
    conf = node.builtin(attach=attach, sysctl=SYSCTLS, promisc=True, allmulti="on")
    added = node.add(conf, pod)
    for key, value in SYSCTLS.items():
        assert sysctl(pod, key.replace(".", "/").removeprefix("net/")) == value
    assert {"PROMISC", "ALLMULTI", "MULTICAST", "UP"} <= set(node.link("eth0", pod)["flags"])

    node.check(conf, pod, added)
    node.ip("-n", pod, "link", "set", "eth0", "promisc", "off", "allmulticast", "off")
    node.ip("netns", "exec", pod, "sysctl", "-qw", "net.ipv4.conf.eth0.rp_filter=0")
    said = node.refused(103, "CHECK", conf | {"prevResult": added}, pod)
    for fault in ("promisc is not on", "allmulti is not on", "net/ipv4/conf/IFNAME/rp_filter is 0, not 2"):
        assert fault in said
    node.delete(conf, pod)
    assert (node.state(), node.records()) == (before, [])


def test_a_flag_is_switched_off_in_the_pod_only(node: Node) -> None:
    node.nip("link", "set", "pf0v0", "promisc", "on")
    before, pod = node.state(), node.pod()
    conf = node.builtin(promisc=False)
    node.add(conf, pod)
    assert "PROMISC" not in node.link("eth0", pod)["flags"]
    node.delete(conf, pod)
    assert node.state() == before


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("net.ipv4.conf.IFNAME.no_such_key", "1", "the kernel has no net/ipv4/conf/IFNAME/no_such_key"),
        ("net.ipv4.conf.IFNAME.rp_filter", "many", "eth0/rp_filter = 'many': Invalid argument"),
        ("net.ipv4.conf.all.rp_filter", "1", "net.ipv4.conf.all.rp_filter is no sysctl of the interface"),
    ],
)
def test_a_wrong_sysctl_changes_nothing(node: Node, key: str, value: str, why: str) -> None:
    pod = node.pod()
    before = node.kept()
    assert why in node.refused(7, "ADD", node.builtin(sysctl={key: value}), pod)
    assert node.kept() == before


@pytest.mark.modes("process")
def test_a_read_only_proc_sys(node: Node, tmp_path: Path) -> None:
    """If /proc/sys is read-only, as in a container, sysctls are set through the node's /proc elsewhere."""
    proc = tmp_path / "proc"
    proc.mkdir()
    link = node.tree.proc / "sys/net"
    link.unlink()
    link.symlink_to(proc / "sys/net")
    mounts = (
        f"mount -t proc proc {proc}; mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys"
    )
    inside = ["unshare", "-m", "sh", "-ec", f'{mounts}; exec "$@"', "sh"]
    enter = node.enter()
    node.enter = lambda: [*enter, *inside]  # type: ignore[method-assign]
    pod = node.pod()
    node.ip("netns", "exec", pod, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
    node.add(node.builtin(ipam=IPV6, sysctl=SYSCTLS), pod)
    assert sysctl(pod, "ipv6/conf/IFNAME/keep_addr_on_down") == "1"
    assert sysctl(pod, "ipv4/conf/IFNAME/rp_filter") == "2"
    assert node.addresses("eth0", pod) == ["fd00::2/64"]
