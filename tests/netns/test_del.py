"""DEL after changes outside the plugin: it releases the attachment, also if a part is gone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from harness.pod import rename
from harness.veth import ADDRESS, Node, said

pytestmark = pytest.mark.modes("resident", "deferred")


def change(node: Node, **fields: Any) -> None:
    """Change the journal's only record."""
    path = node.record()
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_twice(either: Node) -> None:
    node, before, pod = either, either.state(), either.pod()
    conf = node.conf(ipam=node.host_local())
    node.add(conf, pod)
    for _ in range(2):
        node.delete(conf, pod)
        assert (node.state(), node.records(), node.leases(), node.locks()) == (before, [], [], [])


def test_of_what_never_was(node: Node) -> None:
    before, pod = node.snapshot(), node.pod()
    node.delete(node.conf(ipam=node.host_local()), pod)
    assert node.snapshot() == before | {"pods": node.snapshot()["pods"]}


NO_PODS = ("", "relative", "/run/netns/no-such", "/etc/passwd", "/proc/self/ns/mnt", "/run", "host", "other")


@pytest.mark.parametrize("path", NO_PODS)
def test_a_path_that_is_not_the_pods_namespace(node: Node, path: str) -> None:
    """A DEL finds the VF by the recorded path of the ADD if CNI_NETNS is not the pod's namespace."""
    before, pod, other = node.state(), node.pod(), node.pod()
    path = {"host": f"/run/netns/{node.host}", "other": f"/run/netns/{other}"}.get(path, path)
    conf = node.conf(ipam=node.host_local())
    node.add(conf, pod)
    node.delete(conf, "", container=pod, env={"CNI_NETNS": path})
    assert (node.state(), node.records(), node.leases()) == (before, [], [])


def test_the_namespace_under_a_new_path(node: Node) -> None:
    """A DEL finds the VF by CNI_NETNS if the recorded path no longer exists."""
    before, pod = node.state(), node.pod()
    conf = node.conf()
    node.add(conf, pod)
    moved = f"{pod}-moved"
    rename(pod, moved)
    node.pods.append(moved)
    node.delete(conf, moved, container=pod)
    assert (node.state(), node.records()) == (before, [])


@pytest.mark.parametrize("name", ["eth0", "dev7"])
def test_the_namespace_has_ended_and_the_vf_came_home(either: Node, name: str) -> None:
    node = either
    node.nip("link", "set", "pf0v0", "mtu", "1300", "up")
    before, pod = node.state(), node.pod()
    conf = node.conf(ipam=node.host_local(), mtu=1400, vf=0)
    node.add(conf, pod)
    node.return_device(pod, name)
    node.ip("netns", "del", pod)
    node.delete(conf, pod)
    assert (node.state(), node.records(), node.leases()) == (before, [], [])


@pytest.mark.modes("process", "resident")
def test_the_vf_comes_home_late(node: Node) -> None:
    """A DEL waits for the kernel to return the VF from an ended namespace, since its driver is bound."""
    before, pod = node.state(), node.pod()
    conf = node.conf(vf=0)
    node.add(conf, pod)
    node.tree.remove_netdev(0)
    change(node, netns="/run/netns/ended")  # otherwise the DEL finds the VF by the ADD's path
    process = node.start("DEL", conf, "/run/netns/ended", container=pod)
    while f"vf-{node.tree.pci(0)}" not in node.locks():
        assert process.poll() is None, node.finish(process)
    node.ip("-n", pod, "link", "set", "eth0", "down")
    node.ip("-n", pod, "link", "set", "eth0", "netns", node.host, "name", "dev9")
    node.tree.add_netdev(0, "dev9")
    assert node.finish(process).status == 0
    assert (node.state(), node.records()) == (before, [])


@pytest.mark.modes("process", "resident")
def test_the_name_is_taken_in_the_host(either: Node) -> None:
    """The VF returns to the host under another name if another device has taken its name."""
    node, pod = either, either.pod()
    mac = node.state()["pf0v0"]["address"]
    node.nip("link", "set", "pf0v0", "up")
    conf = node.conf(ipam=node.host_local(), vf=0)
    node.add(conf, pod)
    node.nip("link", "add", "pf0v0", "type", "veth", "peer", "name", "thief-peer")
    node.tree.remove_netdev(0)
    node.tree.add_netdev(0, "eth0")  # the kernel keeps the name eth0 if the host has no eth0
    done = node.delete(conf, pod)
    assert "another device has the VF's name" in done.stderr
    assert (node.records(), node.leases()) == ([], [])
    assert node.link("eth0")["address"] == mac
    assert "UP" in node.link("eth0")["flags"]


def test_both_names_are_taken_in_the_host(node: Node) -> None:
    pod = node.pod()
    mac = node.state()["pf0v0"]["address"]
    node.add(node.conf(vf=0), pod)
    for name in ("pf0v0", "eth0"):
        node.nip("link", "add", name, "type", "veth", "peer", "name", f"{name}-p")
    node.delete(node.conf(vf=0), pod)
    homeless = [name for name in node.links() if node.link(name)["address"] == mac]
    assert len(homeless) == 1
    assert homeless[0].startswith("dev")
    assert node.records() == []


@pytest.mark.parametrize("boot", ["record", "machine"])
@pytest.mark.modes("process")
def test_after_a_reboot(node: Node, boot: str) -> None:
    """After a reboot the record no longer describes the VF, so a DEL does not touch the VF."""
    boot_id = node.tree.proc / "sys/kernel/random/boot_id"
    boot_id.parent.mkdir(parents=True)
    boot_id.write_text("first\n")
    pod, conf = node.pod(), node.conf(ipam=node.host_local(), vf=0)
    node.add(conf, pod)
    if boot == "record":
        change(node, boot="before that")
    else:
        boot_id.write_text("second\n")
    node.delete(conf, pod)
    assert node.link("eth0", pod)["operstate"] == "UP"
    assert (node.records(), node.leases()) == ([], [])


def test_somebody_who_is_not_the_owner(node: Node) -> None:
    pod, other = node.pod(), node.pod()
    conf = node.conf(ipam=node.host_local())
    node.add(conf, pod)
    before = node.snapshot()
    node.delete(conf, pod, container=other)
    node.delete(conf, pod, ifname="eth1")
    node.delete(conf, pod, container=pod[:-1])
    assert node.snapshot() == before


@pytest.mark.parametrize("squatter", [False, True])
def test_renamed_in_the_pod(either: Node, squatter: bool) -> None:
    """A DEL finds a VF that the pod has renamed, also if another device of the pod has its old name."""
    node, before, pod = either, either.state(), either.pod()
    node.add(node.conf(), pod)
    node.ip("-n", pod, "link", "set", "eth0", "down")
    node.ip("-n", pod, "link", "set", "eth0", "name", "mine")
    if squatter:
        node.ip("-n", pod, "link", "add", "eth0", "type", "veth", "peer", "name", "p")
    node.delete(node.conf(), pod)
    assert (node.state(), node.records()) == (before, [])
    assert ("eth0" in node.ip("-n", pod, "link")) is squatter


@pytest.mark.modes("process", "resident")
def test_an_mtu_that_is_no_longer_possible(node: Node) -> None:
    """A DEL logs an MTU that it cannot restore (the PF's may be lower now), and returns the VF."""
    pod = node.pod()
    node.add(node.conf(vf=0), pod)
    change(node, before_mtu=1 << 20)
    done = node.delete(node.conf(vf=0), pod)
    assert "keeps an MTU" in done.stderr
    assert "pf0v0" in node.state()
    assert node.records() == []


def test_ipam_fails(node: Node) -> None:
    """After a failed DEL of the IPAM plugin the VF is in the host; the record stays for the next DEL."""
    before, pod, conf = node.state(), node.pod(), node.conf(ipam=node.other_ipam(DEL="exit 3"))
    node.add(conf, pod)
    assert "exit status 3" in node.refused(102, "DEL", conf, pod)
    assert (node.state(), len(node.records()), node.locks()) == (before, 1, [])
    node.other_ipam()
    node.delete(conf, pod)
    assert (node.state(), node.records()) == (before, [])
    assert node.calls() == ["ADD", "DEL", "DEL"]


def test_the_ipam_plugin_is_gone(node: Node) -> None:
    before, pod, conf = node.state(), node.pod(), node.conf(ipam=node.other_ipam())
    node.add(conf, pod)
    (node.root / "bin/txipam").unlink()
    assert "txipam" in node.refused(102, "DEL", conf, pod)
    assert node.state() == before


def test_dhcp_is_released_through_the_interface(node: Node) -> None:
    """The dhcp plugin needs the VF for its messages, so its DEL ends before the VF is moved."""
    show = 'sleep 0.2; ip -n "$(basename "$CNI_NETNS")" -o link show eth0 > "$ROOT/$CNI_COMMAND" 2>&1'
    pod, conf = node.pod(), node.conf(ipam=node.other_ipam("dhcp", ADD=f"{show}; {said(ADDRESS)}", DEL=show))
    node.add(conf, pod)
    node.delete(conf, pod)
    for command in ("ADD", "DEL"):
        assert "eth0" in (node.root / command).read_text()
        assert ",UP" in (node.root / command).read_text()
    assert node.calls() == ["ADD", "DEL"]


def test_no_descriptor_is_left_to_a_delegate(node: Node) -> None:
    show = 'ls -l /proc/$$/fd > "$ROOT/fds-$CNI_COMMAND"; echo "{}"'
    pod, conf = node.pod(), node.conf(ipam=node.other_ipam(ADD=show, DEL=show))
    node.add(conf, pod)
    node.delete(conf, pod)
    for command in ("ADD", "DEL"):
        found = (node.root / f"fds-{command}").read_text()
        assert "cni-config" in found  # its stdin
        for ours in ("socket:", "net:[", str(node.run_dir)):
            assert ours not in found
