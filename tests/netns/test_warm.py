"""``sriov-fast warm``: it keeps VFs up without ARP and IPv6, and restores them with ``--off``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.pod import disables_ipv6, read
from harness.veth import MakeNode, Node


def cli(node: Node, *words: str, status: int = 0) -> str:
    done = node.operate(*words, status=status)
    return done.stdout + done.stderr


def warm(node: Node, *words: str, status: int = 0) -> dict[str, dict[str, Any]]:
    found = json.loads(cli(node, "warm", "pf0", "--json", *words, status=status))
    return {item["netdev"]: item for item in found}


def is_quiet(node: Node, name: str) -> bool:
    link = node.link(name)
    return "NOARP" in link["flags"] and "LOWER_UP" in link["flags"] and not link["addr_info"]


@pytest.fixture
def node(make_node: MakeNode) -> Node:
    return make_node(vfs=4)


@pytest.fixture
def mixed(node: Node) -> Node:
    """A node with VF 1 up with a link-local address, VF 2 used by the host, and the others down."""
    node.nip("link", "set", node.tree.netdev(1), "up")
    node.nip("addr", "add", "192.0.2.1/24", "dev", node.tree.netdev(2))
    return node


def test_free_vfs_are_up_and_quiet_and_made_what_they_were(mixed: Node) -> None:
    before = mixed.state()
    disabled = [disables_ipv6(mixed.tree.netdev(index), mixed.host) for index in range(4)]
    for _ in range(2):  # the second run must not record the warm state as the original one
        found = warm(mixed)
        assert [found[mixed.tree.netdev(index)]["warm"] for index in range(4)] == [True, True, False, True]
        assert "192.0.2.1" in found[mixed.tree.netdev(2)]["why"]
        assert [is_quiet(mixed, mixed.tree.netdev(index)) for index in range(4)] == [True, True, False, True]
    assert {item["warm"] for item in warm(mixed, "--off").values()} == {False}
    assert mixed.state() == before
    assert [disables_ipv6(mixed.tree.netdev(index), mixed.host) for index in range(4)] == disabled
    assert [item["scope"] for item in mixed.link(mixed.tree.netdev(1))["addr_info"]] == ["link"]
    assert not list(Path(mixed.run_dir, "warm").iterdir())


def test_vfs_and_doctor_show_it(node: Node) -> None:
    node.nip("addr", "add", "192.0.2.1/24", "dev", node.tree.netdev(2))
    warm(node)
    shown = {vf["netdev"]: vf["warm"] for vf in json.loads(cli(node, "vfs", "--json"))[0]["vfs"]}
    assert shown == {node.tree.netdev(index): index != 2 for index in range(4)}
    assert cli(node, "vfs").count("(warm)") == 3
    assert "3 of 3 are up and quiet" in cli(node, "doctor")
    node.nip("link", "set", node.tree.netdev(0), "down")
    said = cli(node, "doctor")
    assert "2 of 3 are up and quiet" in said
    assert f"VF {node.tree.pci(0)}: is not warm any more: it is down: sriov-fast warm pf0" in said
    warm(node)
    assert "3 of 3 are up and quiet" in cli(node, "doctor")


def test_a_vf_in_a_pod_is_left_alone(node: Node) -> None:
    """A moved VF answers ARP in the pod, and is warm again after the DEL."""
    warm(node)
    pod = node.pod()
    conf = node.conf(vf=0, ipam=node.host_local())
    before = node.state()
    node.add(conf, pod)
    assert "NOARP" not in node.link("eth0", pod)["flags"]
    found = cli(node, "warm", "pf0", "--off", "--json", status=1)
    assert "in use by" in found
    node.delete(conf, pod)
    after = node.state()
    assert after[node.tree.netdev(0)] == before[node.tree.netdev(0)]
    assert is_quiet(node, node.tree.netdev(0))
    assert {item["warm"] for item in warm(node, "--off").values()} == {False}


@pytest.mark.modes("resident", "deferred")
def test_a_macvlan_leaves_a_vf_as_warm_as_it_was(node: Node) -> None:
    """The VF keeps its carrier from before the ADD until after the DEL."""
    warm(node)
    name, pod = node.tree.netdev(0), node.pod()
    conf = node.conf(vf=0, attach="macvlan", ipam=node.host_local())
    before, changes = node.state(), carrier_changes(node, name)
    for _ in range(2):
        node.add(conf, pod)
        assert "NOARP" not in node.link("eth0", pod)["flags"]
        assert "LOWER_UP" in node.link("eth0", pod)["flags"]
        node.delete(conf, pod)
        assert node.state() == before
        assert is_quiet(node, name)
        assert disables_ipv6(name, node.host)
    assert carrier_changes(node, name) == changes
    assert {item["warm"] for item in warm(node, "--off").values()} == {False}
    assert not disables_ipv6(name, node.host)


def carrier_changes(node: Node, name: str) -> int:
    """Return the number of times that a device has lost or got its carrier."""
    return int(read(node.host, f"/sys/class/net/{name}/carrier_changes"))


@pytest.mark.parametrize("off", [False, True])
def test_a_vf_that_fails_stops_no_other(node: Node, off: bool) -> None:
    if off:
        warm(node)
    state = Path(node.run_dir, "warm", node.tree.pci(1))
    state.parent.mkdir(exist_ok=True)
    state.write_text('{"of": "another version"}')
    found = warm(node, *["--off"][: int(off)], status=1)
    first, *others = (found[node.tree.netdev(index)] for index in (1, 0, 2, 3))
    assert "unknown format" in first["why"]
    assert [(item["warm"], item["why"]) for item in others] == [(not off, None)] * 3


def test_no_such_pf(node: Node) -> None:
    assert "pf9" in cli(node, "warm", "pf9", status=1)
