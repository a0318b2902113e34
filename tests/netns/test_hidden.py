"""An ADD for a container with an earlier VF in a namespace that is not found."""

from __future__ import annotations

import signal

import pytest

from harness.veth import Node

pytestmark = pytest.mark.modes("resident")


@pytest.mark.parametrize("has_address", [True, False])
def test_a_new_add(node: Node, has_address: bool) -> None:
    """An ADD is refused while the interface's earlier VF is lost and holds an address."""
    node.delegate("same", """[ $CNI_COMMAND = ADD ] && echo '{"ips":[{"address":"10.1.0.2/24"}]}'""")
    conf = node.conf(ipam={"type": "same"} if has_address else None)
    pod, far = node.pod(), node.pod()
    node.add(conf, pod)
    node.tree.remove_netdev(0)
    node.ip("-n", pod, "link", "set", "eth0", "netns", far)
    assert "kept until the VF is found" in node.run("DEL", conf, pod).stderr
    if has_address:
        said = node.refused(11, "ADD", conf, pod)
        assert said.startswith(f"container {pod}: its earlier eth0 is not deleted yet: VF 0 of pf0")
        assert node.calls() == ["ADD"]
        node.return_device(far)
    node.add(conf, pod)
    assert node.calls() == (["ADD", "DEL", "ADD"] if has_address else [])
    if not has_address:
        node.return_device(far)
    node.run("DEL", conf, pod)
    node.collect(conf)
    assert node.records() == []


@pytest.mark.modes("process")
def test_an_add_after_a_killed_one(node: Node) -> None:
    """An ADD is refused while the VF of a killed ADD is lost."""
    node.delegate("same", """[ $CNI_COMMAND = ADD ] && echo '{"ips":[{"address":"10.1.0.2/24"}]}'""")
    conf = node.conf(ipam={"type": "same"})
    pod, far = node.pod(), node.pod()
    node.prelude = (
        "from sriov_fast.vf import attach; import os, signal; "
        "attach.address = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert node.run("ADD", conf, pod).status == -signal.SIGKILL
    node.prelude = "pass"
    node.tree.remove_netdev(0)
    node.ip("-n", pod, "link", "set", "eth0", "netns", far)
    said = node.refused(11, "ADD", conf, pod)
    assert said.startswith(f"container {pod}: its earlier eth0 is not deleted yet: VF 0 of pf0")
    node.return_device(far)
    node.add(conf, pod)
    assert node.calls() == ["ADD", "DEL", "ADD"]


@pytest.mark.modes("process")
def test_the_operators_release(node: Node) -> None:
    """``release`` fails while the VF is not found."""
    pod, far = node.pod(), node.pod()
    node.add(node.conf(), pod)
    node.tree.remove_netdev(0)
    node.ip("-n", pod, "link", "set", "eth0", "netns", far)
    for _ in range(2):
        done = node.operate("release", pod, "--force", status=1)
        assert done.stdout == ""
        assert f"VF {node.tree.pci(0)} of {pod}/eth0 is not released yet" in done.stderr
    node.return_device(far)
    assert "is released" in node.operate("release", pod, "--force").stdout
    assert node.records() == []
