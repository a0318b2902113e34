"""Devices that udev renames while an ADD looks for them."""

from __future__ import annotations

import pytest

from harness.veth import Node

# What happens between two calls of the plugin's own; ``moment`` is called once.
PRELUDE = """\
import os, subprocess, sriov_fast.{module} as module
kept, once = module.{name}, []
def moment(*words, **more):
    {before}
    if not once:
        once.append(subprocess.run({script!r}, shell=True, check=True))
    {after}
module.{name} = moment
"""
BEFORE = {"before": "pass", "after": "return kept(*words, **more)"}
AFTER = {"before": "found = kept(*words, **more)", "after": "return found"}


def interfere(node: Node, module: str, name: str, when: dict[str, str], script: str) -> None:
    """Run a script before or after the first call of a function of the plugin."""
    program = PRELUDE.format(module=module, name=name, script=script, **when)
    node.prelude = f"exec({program!r})"


def rename(node: Node, old: str, new: str) -> str:
    """Return the commands that rename a device, in the kernel and in the tree."""
    net = next(path.parent for path in node.tree.sys.glob(f"devices/*/*/*/net/{old}"))
    known = node.tree.sys / "class/net"
    return (
        f"ip link set {old} down; ip link set {old} name {new};"
        f"mv {net}/{old} {net}/{new}; rm {known}/{old}; ln -s {net}/{new} {known}/{new};"
    )


@pytest.mark.parametrize(
    ("module", "name", "when"),
    [
        ("vf.select", "_vf_from", AFTER),
        ("vf.candidate", "read", BEFORE),
        ("vf.candidate", "_use", BEFORE),
        ("vf.select", "choose", AFTER),
        ("vf.attach", "configure", BEFORE),
        ("vf.move", "enter", BEFORE),
    ],
)
def test_a_vf_that_is_renamed_meanwhile(node: Node, module: str, name: str, when: dict[str, str]) -> None:
    """A pod got the host's device, which had taken the VF's name between the look at sysfs and the move."""
    node.nip("link", "add", "uplink", "type", "veth", "peer", "name", "switch")
    index, mac = node.link("pf0v0")["ifindex"], node.link("pf0v0")["address"]
    interfere(node, module, name, when, rename(node, "pf0v0", "ens1v0") + "ip link set uplink name pf0v0")
    pod = node.pod()
    node.add(node.conf(vf=0), pod)
    assert node.link("eth0", pod)["address"] == mac
    assert node.link("pf0v0")["link_type"] == "ether"
    assert "pf0v0" in node.links()
    node.prelude = "pass"
    node.delete(node.conf(), pod)
    assert mac in {node.link(item)["address"] for item in node.links()}
    assert index
    assert node.records() == []


def test_a_pf_that_is_renamed_meanwhile(node: Node) -> None:
    """The settings of a VF went through another device, which had taken the PF's name."""
    node.nip("link", "add", "uplink", "type", "veth", "peer", "name", "switch")
    index = node.link("pf0")["ifindex"]
    script = rename(node, "pf0", "ens1") + "ip link set uplink name pf0"
    interfere(node, "vf.select", "choose", AFTER, script)
    pod = node.pod()
    node.add(node.conf(vf=0), pod)
    assert f'"pf_index":{index},' in node.record().read_text().replace(" ", "")
    assert '"pf":"ens1"' in node.record().read_text().replace(" ", "")


def test_a_vf_that_is_renamed_on_the_way_home(node: Node) -> None:
    """A DEL brought the device up that had taken the VF's name, and left the VF as the pod had it."""
    node.nip("link", "add", "uplink", "type", "veth", "peer", "name", "switch")
    node.nip("link", "set", "pf0v0", "up")
    mac, own = node.link("pf0v0")["address"], node.link("uplink")["address"]
    pod = node.pod()
    node.add(node.conf(vf=0), pod)
    script = rename(node, "pf0v0", "ens1v0") + "ip link set uplink name pf0v0"
    interfere(node, "vf.move", "Release._in_host", BEFORE, script)
    node.delete(node.conf(), pod)
    found = {node.link(name)["address"]: node.link(name) for name in node.links()}
    assert (found[mac]["ifname"], "UP" in found[mac]["flags"]) == ("ens1v0", True)
    assert (found[own]["ifname"], "UP" in found[own]["flags"]) == ("pf0v0", False)
