"""Changes of the configuration while a VF is attached: a DEL releases the resources that the ADD acquired."""

from __future__ import annotations

import json
import re
import shutil
from typing import Any

import pytest

from harness.veth import Node

pytestmark = pytest.mark.modes("resident")

# The change of the configuration between ADD and DEL; the ADD used host-local, PF pf0 and network net1.
CHANGES: dict[str, dict[str, Any]] = {
    "no ipam": {"ipam": None},
    "empty ipam": {"ipam": {}},
    "another name": {"name": "renamed"},
    "another IPAM": {"ipam": {"type": "static"}},
    "another store": {"ipam": {"type": "host-local", "subnet": "10.77.0.0/24", "dataDir": "/nowhere"}},
    "another subnet": {"ipam": {"type": "host-local", "subnet": "10.99.0.0/24"}},
    "an IPAM that is not installed": {"ipam": {"type": "no-such"}},
    "no PF": {"master": None},
    "another PF": {"master": "pf9"},
    "wrong values": {"vlan": "many", "ipam": [], "mtu": -1, "name": 1},
    "another version": {"cniVersion": "1.1.0"},
    "a version to come": {"cniVersion": "9.0.0"},
}


def released(node: Node, before: object, pod: str, conf: dict[str, Any] | bytes, **more: Any) -> None:
    done = node.run("DEL", conf, pod, **more)
    assert (done.status, done.stdout) == (0, b""), done
    node.homed()
    assert (node.state(), node.records(), node.leases(), node.locks()) == (before, [], [], [])


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("delegate", [False, True])
def test_a_del_releases_what_the_add_recorded(node: Node, what: str, delegate: bool) -> None:
    """A DEL with a changed configuration returns the address that the ADD allocated."""
    before, pod = node.state(), node.pod()
    node.add(node.conf(ipam=node.host_local(delegate=delegate)), pod)
    assert node.leases() == ["10.77.0.2"]
    released(node, before, pod, node.conf(**CHANGES[what]))


@pytest.mark.parametrize("stdin", [b"", b"{", b"[]", b'{"name": "a", "name": "b"}', b"\xff"])
def test_a_configuration_that_no_longer_parses(node: Node, stdin: bytes) -> None:
    """A DEL with invalid stdin takes VF and address from the record, and releases both."""
    before, pod = node.state(), node.pod()
    node.add(node.conf(ipam=node.host_local()), pod)
    released(node, before, pod, stdin)


def test_the_plugin_gets_what_its_add_got(node: Node) -> None:
    """The IPAM plugin's DEL gets the ADD's configuration and arguments, and the runtime's prevResult."""
    body = '{"cniVersion": "1.0.0", "ips": [{"address": "10.5.0.2/24"}]}'
    node.delegate("given", f"cat > \"$ROOT/$CNI_COMMAND\"; [ $CNI_COMMAND = DEL ] || echo '{body}'")
    pod = node.pod()
    added = node.add(node.conf(ipam={"type": "given", "pool": "a"}), pod, args="K8S_POD_NAME=web")
    now = node.conf(name="renamed", ipam={"type": "given", "pool": "b"}, prevResult=added)
    node.delete(now, pod, args="K8S_POD_NAME=other")
    told = {verb: json.loads((node.root / verb).read_text()) for verb in ("ADD", "DEL")}
    assert told["DEL"] == told["ADD"] | {"prevResult": added}
    calls = (node.root / "calls").read_text().splitlines()
    assert [re.search(r"K8S_POD_NAME=\w+", call)[0] for call in calls] == ["K8S_POD_NAME=web"] * 2  # type: ignore[index]


@pytest.mark.modes("process")
def test_without_a_record_the_given_configuration_counts(node: Node) -> None:
    """A DEL without a record returns the address with its own configuration."""
    pod = node.pod()
    conf = node.conf(ipam=node.host_local())
    node.add(conf, pod)
    shutil.rmtree(node.run_dir)
    node.delete(conf, pod)
    assert node.leases() == []
    node.refused(6, "DEL", b"{", pod)
    node.delete(conf, pod)


@pytest.mark.modes("resident")
def test_check_asks_the_ipam_of_the_add(node: Node) -> None:
    """CHECK executes the IPAM plugin of the ADD, also if the configuration now names another or none."""
    pod = node.pod()
    conf = node.conf(ipam=node.host_local())
    previous = node.add(conf, pod)
    for change in ({"ipam": None}, {"ipam": {"type": "no-such"}}):
        node.check(conf | change, pod, previous)
