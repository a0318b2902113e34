"""A VF comes home whatever the pod put around it, and one that cannot come home is kept for itself."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from harness.veth import Node, ResidentNode
from harness.waiting import wait_for

pytestmark = [
    pytest.mark.modes("resident", "deferred"),
    pytest.mark.fresh,  # names and drivers of devices change
]

GC = {"cniVersion": "1.1.0", "cni.dev/valid-attachments": []}


def config(node: Node, **more: Any) -> dict[str, Any]:
    return node.conf(**{"ipam": node.host_local(delegate=False), "vf": 0} | more)


def in_pod(node: Node, pod: str, *lines: str) -> None:
    for line in lines:
        node.ip("-n", pod, *line.split())


def devices(node: Node, pod: str) -> set[str]:
    shown = node.ip("-o", "-n", pod, "link").splitlines()
    return {line.split()[1].rstrip(":").partition("@")[0] for line in shown}


def altnames(node: Node, name: str) -> list[str]:
    found: list[str] = node.link(name).get("altnames", [])
    return found


def is_released(node: Node, before: dict[str, Any]) -> None:
    node.homed()
    assert (node.state(), node.records(), node.leases()) == (before, [], [])


# --- masters and uppers


def test_402_a_vf_in_a_bridge_of_the_pod(either: Node) -> None:
    """A pod enslaved its VF: the master lets go of the VF before its settings are restored, and stays."""
    node, before, pod = either, either.state(), either.pod()
    node.add(config(node, mtu=1400), pod)
    in_pod(node, pod, "link add br0 type bridge", "link set eth0 master br0")
    node.delete(config(node), pod)
    is_released(node, before)
    assert devices(node, pod) == {"lo", "br0"}
    assert "master" not in node.link("pf0v0")


def test_403_devices_on_top_of_the_vf(either: Node) -> None:
    """A macvlan on the VF stayed alive after DEL and worked on the next pod's VF; others are left alone."""
    node, before, pod = either, either.state(), either.pod()
    node.add(config(node), pod)
    in_pod(
        node,
        pod,
        "link add other type veth peer name other-peer",
        "link add link other name stays type macvlan",
        "link add link eth0 name one type macvlan mode bridge",
        "link add link eth0 name two type macvlan mode bridge",
        "link add link one name three type macvlan mode bridge",
    )
    node.delete(config(node), pod)
    is_released(node, before)
    assert devices(node, pod) == {"lo", "other", "other-peer", "stays"}


# --- alternative names


@pytest.mark.parametrize(
    ("names", "by"), [(["pf0"], "DEL"), (["pf0v0"], "DEL"), (["pf0", "pf0v1", "mine"], "GC")]
)
def test_404_an_altname_that_is_a_name_in_the_host(either: Node, names: list[str], by: str) -> None:
    """The release failed with EEXIST until the pod ended, so that a pod could keep its VF."""
    node, before, pod = either, either.state(), either.pod()
    node.add(config(node), pod)
    for name in names:
        in_pod(node, pod, f"link property add dev eth0 altname {name}")
    if by == "DEL":
        node.delete(config(node), pod)
    else:
        assert node.run("GC", config(node, **GC)).status == 0
    is_released(node, before)
    assert altnames(node, "pf0v0") == []


def test_404_the_operators_altnames_come_back(either: Node) -> None:
    """A pod took an alternative name away, and gave another one."""
    node, pod = either, either.pod()
    for name in ("enp3s16", "enp3s16v0np0-which-is-a-long-one"):
        node.nip("link", "property", "add", "dev", "pf0v0", "altname", name)
    before, known = node.state(), altnames(node, "pf0v0")
    node.add(config(node), pod)
    in_pod(
        node,
        pod,
        "link property del dev eth0 altname enp3s16",
        "link property add dev eth0 altname mine",
    )
    node.delete(config(node), pod)
    is_released(node, before)
    assert sorted(altnames(node, "pf0v0")) == sorted(known)


def test_404_an_operators_altname_that_was_taken_meanwhile(either: Node) -> None:
    """Another device of the host has it now; the VF comes home without it."""
    node, pod = either, either.pod()
    node.nip("link", "property", "add", "dev", "pf0v0", "altname", "enp3s16")
    before = node.state()
    node.add(config(node), pod)
    node.nip("link", "property", "add", "dev", "pf0", "altname", "enp3s16")
    node.delete(config(node), pod)
    before["pf0v0"]["altnames"] = []
    is_released(node, before)
    assert altnames(node, "pf0") == ["enp3s16"]


def test_404_an_altname_that_clashes_in_the_pod(either: Node) -> None:
    """ADD said only that the namespace has an interface of the name CNI_IFNAME, which it had not."""
    node, pod = either, either.pod()
    node.nip("link", "property", "add", "dev", "pf0v0", "altname", "enp3s16")
    in_pod(node, pod, "link add enp3s16 type veth peer name p")
    before = node.snapshot()
    said = node.refused(101, "ADD", config(node), pod)
    assert "altname 'enp3s16' of pf0v0" in said
    assert node.snapshot() == before


# --- a namespace without a name


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


def test_405_a_process_holds_the_namespace(either: Node) -> None:
    """The VF was forgotten in a namespace without a name, and its address went to the next pod."""
    node, before, pod = either, either.state(), either.pod()
    node.add(config(node), pod)
    with nameless(node, pod, found=True):
        node.delete(config(node), pod)
        is_released(node, before)


def lost(node: Node, pod: str, conf: dict[str, Any]) -> None:
    """Delete an attachment whose VF cannot be found."""
    done = node.run("DEL", conf, pod)
    assert done.status == 0, done
    assert "kept until the VF is found" in done.stderr
    assert node.records() == [f"{node.tree.pci(0)}~~{pod}~eth0"]
    assert (len(node.leases()), node.locks()) == (1, [])


def appears(node: Node, namespace: str, name: str = "dev7") -> None:
    """End the namespace: the kernel brings the VF home."""
    node.ip("-n", namespace, "link", "set", "eth0", "netns", node.host, "name", name)
    node.tree.add_netdev(0, name)
    node.reindex()


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
def test_405_a_namespace_that_is_not_found(either: Node, by: str) -> None:
    """The VF and its address stay the pod's until the VF is back; then whoever comes first brings it home."""
    node, before, pod = either, either.state(), either.pod()
    conf = config(node)
    address = node.add(conf, pod)["ips"][0]["address"]
    with kept(node, pod) as namespace:
        lost(node, pod, conf)
        assert node.run("DEL", conf, pod).status == 0
        assert node.run("GC", conf | GC).status == 0
        assert len(node.leases()) == 1
        other = node.pod()
        given = node.add(config(node, vf=1), other)["ips"][0]["address"]
        assert given != address
        assert node.run("DEL", config(node, vf=1), other).status == 0
        assert "not free" in node.refused(11, "ADD", conf, other)
        assert node.addresses("eth0", namespace) == [address]
        assert len(node.leases()) == 1
        # a stand-in's name in sysfs stays as it is told, and an ADD must find it there again
        appears(node, namespace, "dev7" if by != "ADD" else "pf0v0")
        if by == "DEL":
            node.delete(conf, pod)
        elif by == "GC":
            assert node.run("GC", conf | GC).status == 0
        else:
            node.add(conf, other)
            node.delete(conf, other)
        node.homed()
        assert (node.records(), node.leases()) == ([], [])
        assert node.state() == before


@pytest.mark.modes("resident")
def test_405_the_server_brings_it_home(node: ResidentNode) -> None:
    """Its upkeep does, without a request."""
    before, pod = node.state(), node.pod()
    conf = config(node)
    node.add(conf, pod)
    with kept(node, pod) as namespace:
        lost(node, pod, conf)
        appears(node, namespace)
        node.server.process.terminate()
        assert node.server.ended() == 0
        node.serve().ready()
        is_released(node, before)


def test_405_the_delegates_gc_spares_its_address(node: Node) -> None:
    """The real host-local is told that the attachment is valid until its VF is back."""
    pod, conf = node.pod(), config(node, ipam=node.host_local())
    node.add(conf, pod)
    with kept(node, pod):
        lost(node, pod, conf)
        assert node.run("GC", conf | GC).status == 0
        assert len(node.leases()) == 1


def test_405_a_vf_that_really_is_gone(node: Node) -> None:
    """Then nothing can answer for the address, and it is given back at once."""
    pod, conf = node.pod(), config(node)
    node.add(conf, pod)
    with kept(node, pod):
        node.tree.vanish(0)
        done = node.delete(conf, pod)
        assert "no network device any more" in done.stderr
        assert (node.records(), node.leases()) == ([], [])


# --- another driver


@pytest.mark.modes("process")
@pytest.mark.parametrize("driver", ["vfio-pci", ""])
def test_407_another_driver_is_bound(either: Node, driver: str) -> None:
    """A DEL waited 3 seconds for the network device of a VF whose driver makes none."""
    node, pod = either, either.pod()
    conf = config(node)
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
