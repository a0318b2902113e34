"""Pods that ended without a DEL, and the operator's commands that release their VFs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from harness.veth import Node


def attached(node: Node, netns: str = "") -> tuple[str, dict[str, object]]:
    """Attach a VF with an address; return its pod and the configuration."""
    pod = node.pod()
    conf = node.conf(ipam=node.host_local(delegate=False))
    node.add(conf, netns or pod, container=pod)
    return pod, conf


def test_vfs_and_doctor_show_a_pod_that_is_gone(node: Node) -> None:
    """``vfs`` and ``doctor`` show a VF of a pod that ended without a DEL."""
    pod, _ = attached(node)
    for line in (node.operate("vfs").stdout, node.operate("doctor").stdout):
        assert "is gone" not in line
    node.return_device(pod)
    node.end(pod)
    assert f"{pod}/eth0 (its namespace /run/netns/{pod} is gone since " in node.operate("vfs").stdout
    (pf,) = json.loads(node.operate("vfs", "--json").stdout)
    assert [bool(vf["stray"]) for vf in pf["vfs"]] == [True, False]
    said = node.operate("doctor").stdout
    assert f"WARN  VF {node.tree.pci(0)}: belongs to {pod}/eth0: its namespace" in said
    assert f"sriov-fast release {pod} eth0" in said


@pytest.mark.parametrize("words", [["release", "POD"], ["release", "POD", "eth0"], ["doctor", "--repair"]])
def test_release_gives_back_vf_and_address(node: Node, words: list[str]) -> None:
    """``release`` and ``doctor --repair`` release VF and address of a pod that ended without a DEL."""
    before = node.state()
    pod, conf = attached(node)
    node.return_device(pod)
    node.end(pod)
    done = node.operate(*[pod if word == "POD" else word for word in words])
    assert f"VF {node.tree.pci(0)} of {pod}/eth0 is released" in done.stdout, done
    assert (node.records(), node.leases(), node.locks()) == ([], [], [])
    assert node.state() == before
    node.add(conf | {"vf": 0}, node.pod())


def test_release_of_what_nobody_has(node: Node) -> None:
    """``release`` with a wrong container ID fails and releases nothing."""
    attached(node)
    done = node.operate("release", "nobody", "eth0", status=1)
    assert done.stdout == ""
    assert "no VF belongs to nobody eth0" in done.stderr
    assert len(node.records()) == 1


@pytest.mark.parametrize("broken", [0, 1])
def test_one_interface_that_stays_keeps_no_other(node: Node, broken: int) -> None:
    names = ("eth0", "net1")
    pod, conf = attached(node)
    node.add(conf, pod, ifname="net1")
    for index, ifname in enumerate(names):
        node.return_device(pod, ifname=ifname, index=index)
    node.end(pod)
    Path(node.run_dir, "vfs", f"{node.tree.pci(broken)}~{pod}~{names[broken]}").write_text("{")
    done = node.operate("release", pod, status=1)
    assert f"VF {node.tree.pci(1 - broken)} of {pod}/{names[1 - broken]} is released" in done.stdout
    assert "the record is broken" in done.stderr


def test_a_living_pod_keeps_its_vf_unless_forced(node: Node) -> None:
    """``release`` releases the VF of a running pod only with ``--force``."""
    pod, _ = attached(node)
    done = node.operate("release", pod, "--json", status=1)
    assert json.loads(done.stdout) == []
    assert f"its namespace /run/netns/{pod} is there" in done.stderr
    assert "is released" not in node.operate("doctor", "--repair").stdout
    assert node.link("eth0", pod)["ifname"] == "eth0"
    assert len(node.records()) == 1
    done = node.operate("release", pod, "--force", "--json")
    assert json.loads(done.stdout) == [{"pci": node.tree.pci(0), "containerID": pod, "ifname": "eth0"}]
    assert (node.records(), node.leases()) == ([], [])
    assert node.tree.netdev(0) in node.links()


def test_a_namespace_without_a_file_is_not_gone(node: Node) -> None:
    """``release`` refuses the VF while a process keeps the pod's namespace, also without its file."""
    pod, _ = attached(node)
    holder = subprocess.Popen(["nsenter", f"--net=/run/netns/{pod}", "--", "sleep", "600"])
    try:
        while Path(f"/proc/{holder.pid}/comm").read_text() != "sleep\n":
            pass
        node.end(pod)
        assert "is gone" not in node.operate("vfs").stdout
        done = node.operate("release", pod, status=1)
        assert "the VF is not back in the host" in done.stderr
        assert len(node.records()) == 1
    finally:
        holder.kill()
        holder.wait()


def test_could_not_look_is_not_gone(node: Node) -> None:
    """A failed lookup of the namespace does not mean that the namespace is gone."""
    path = node.root / "netns"
    pod = node.pod()
    path.symlink_to(f"/run/netns/{pod}")
    node.add(node.conf(), str(path), container="c1")
    node.return_device(pod)
    path.unlink()
    path.symlink_to(path)
    assert "is gone" not in node.operate("vfs").stdout
    done = node.operate("release", "c1", status=1)
    assert "Too many levels" in done.stderr
    assert len(node.records()) == 1
    path.unlink()
    node.operate("release", "c1")
