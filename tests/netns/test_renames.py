"""Devices that udev renames during a request."""

from __future__ import annotations

import json

import pytest

from harness.veth import Node

# Executes a script immediately before or after the plugin's ``number``-th send to the kernel.
PRELUDE = """\
import subprocess
from types import SimpleNamespace
from sriov_fast.kernel import backend

class Socket(backend.nl.Socket):
    sends = 0

    def run(self, *words, **more):
        Socket.sends += 1
        if Socket.sends != {number}:
            return super().run(*words, **more)
        if {before}:
            subprocess.run({script!r}, shell=True, check=True)
        try:
            return super().run(*words, **more)
        finally:
            if not {before}:
                subprocess.run({script!r}, shell=True, check=True)

backend.nl = SimpleNamespace(**vars(backend.nl) | {{"Socket": Socket}})
"""
MOMENTS = pytest.mark.parametrize("before", [True, False], ids=["before", "after"])


def interfere(node: Node, number: int, before: bool, name: str, new: str, then: str = "true") -> None:
    """At a send, rename a device in kernel and sysfs, and give its old name to another device.

    ``then`` is a further command.
    """
    node.nip("link", "add", "uplink", "type", "veth", "peer", "name", "switch")
    net = next(path.parent for path in node.tree.sys.glob(f"devices/*/*/*/net/{name}"))
    known = node.tree.sys / "class/net"
    script = (
        f"ip link set {name} down; ip link set {name} name {new};"
        f"mv {net}/{name} {net}/{new}; rm {known}/{name}; ln -s {net}/{new} {known}/{new};"
        f"ip link set uplink name {name}; {then}"
    )
    node.prelude = f"exec({PRELUDE.format(number=number, before=before, script=script)!r})"


@pytest.mark.parametrize("number", [1, 2, 3, 4])  # two reads, down, the move
@MOMENTS
def test_a_vf_that_is_renamed_meanwhile(node: Node, number: int, before: bool) -> None:
    """An ADD moves the VF, not the device that has taken its name after the lookup in sysfs."""
    node.nip("link", "set", "pf0v0", "up")
    mac, pod = node.link("pf0v0")["address"], node.pod()
    interfere(node, number, before, "pf0v0", "ens1v0")
    node.add(node.conf(vf=0), pod)
    assert node.link("eth0", pod)["address"] == mac
    assert "pf0v0" in node.links(), "the other device"
    node.prelude = "pass"
    node.delete(node.conf(), pod)
    assert mac in {node.link(item)["address"] for item in node.links()}
    assert node.records() == []


@MOMENTS
def test_a_pf_that_is_renamed_meanwhile(node: Node, before: bool) -> None:
    """An ADD sends settings to the PF, not to the device that has taken its name."""
    index, pod = node.link("pf0")["ifindex"], node.pod()
    interfere(node, 1, before, "pf0", "ens1")
    node.add(node.conf(vf=0), pod)
    record = json.loads(node.record().read_text())
    assert (record["pf"], record["pf_index"]) == ("ens1", index)


@MOMENTS
def test_a_vf_that_is_renamed_on_the_way_home(node: Node, before: bool) -> None:
    """A DEL restores the VF, not the device that has taken its name."""
    node.nip("link", "set", "pf0v0", "up")
    mac, pod = node.link("pf0v0")["address"], node.pod()
    node.add(node.conf(vf=0), pod)
    interfere(node, 4, before, "pf0v0", "ens1v0")  # the first send in the host after the move
    own = node.link("uplink")["address"]
    node.delete(node.conf(), pod)
    found = {node.link(name)["address"]: node.link(name) for name in node.links()}
    assert (found[mac]["ifname"], "UP" in found[mac]["flags"]) == ("ens1v0", True)
    assert (found[own]["ifname"], "UP" in found[own]["flags"]) == ("pf0v0", False)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_vf_that_is_renamed_during_a_check(node: Node, number: int) -> None:
    """CHECK finds the VF of a macvlan after a rename."""
    pod, conf = node.pod(), node.conf(vf=0, attach="macvlan")
    result = node.add(conf, pod)
    interfere(node, number, True, "pf0v0", "ens1v0", then="ip link set ens1v0 up")
    node.check(conf, pod, result)
