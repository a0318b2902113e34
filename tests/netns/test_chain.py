"""CHECK in a chain: later plugins may change the attachment, and ``prevResult`` has the final state."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest

from harness.veth import DELEGATES, MakeNode, Node

pytestmark = pytest.mark.modes("resident")

MAC = "02:11:22:33:44:55"
VERSIONS = ["0.4.0", "1.0.0", "1.1.0"]
ROUTES = [{"dst": "192.0.2.0/24"}, {"dst": "0.0.0.0/0"}]


def attached(node: Node, version: str, **more: Any) -> tuple[dict[str, Any], str]:
    """Attach with an address and routes; return the configuration with the result, and the pod."""
    pod = node.pod()
    node.ip("-n", pod, "link", "set", "lo", "up")
    conf = node.conf(cniVersion=version, ipam=node.host_local(delegate=False, routes=ROUTES), **more)
    return conf | {"prevResult": node.add(conf, pod)}, pod


def chained(kind: str, conf: dict[str, Any], pod: str, **more: Any) -> dict[str, Any]:
    """Execute a containernetworking plugin after the ADD; return the configuration with its result.

    The installed plugins may not support 1.1.0, so they get at most 1.0.0. Newer releases preserve the
    fields of an interface that 1.1.0 adds, so the fields are merged here.
    """
    if not os.access(f"{DELEGATES}/{kind}", os.X_OK):
        pytest.skip(f"{DELEGATES}/{kind} is not installed")
    names = {"COMMAND": "ADD", "CONTAINERID": pod, "NETNS": f"/run/netns/{pod}", "IFNAME": "eth0"}
    given = {"cniVersion": min(conf["cniVersion"], "1.0.0"), "name": conf["name"], "type": kind} | more
    given["prevResult"] = conf["prevResult"] | {"cniVersion": given["cniVersion"]}
    done = subprocess.run(
        [f"{DELEGATES}/{kind}"],
        input=json.dumps(given).encode(),
        env={f"CNI_{key}": value for key, value in names.items()} | {"CNI_PATH": DELEGATES},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done
    found = json.loads(done.stdout) | {"cniVersion": conf["cniVersion"]}
    (before,), (after,) = conf["prevResult"]["interfaces"], found["interfaces"]
    return conf | {"prevResult": found | {"interfaces": [before | after]}}


def is_well(node: Node, conf: dict[str, Any], pod: str) -> None:
    done = node.run("CHECK", conf, pod)
    assert (done.status, done.stdout) == (0, b""), done


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("change", [{"mac": MAC}, {"mtu": 1400}, {"mac": MAC, "mtu": 1400}])
def test_behind_tuning(node: Node, version: str, change: dict[str, Any]) -> None:
    """CHECK expects the MAC and the MTU that the tuning plugin has set."""
    conf, pod = attached(node, version)
    conf = chained("tuning", conf, pod, **change)
    is_well(node, conf, pod)
    node.ip("-n", pod, "link", "set", "eth0", "address", "02:00:00:00:00:01")
    assert "mac is 02:00:00:00:00:01, not" in node.refused(103, "CHECK", conf, pod)
    node.delete(conf, pod)


@pytest.mark.parametrize("version", VERSIONS)
def test_behind_sbr(node: Node, version: str) -> None:
    """CHECK finds the routes in the table to which the sbr plugin has moved them."""
    conf, pod = attached(node, version)
    conf = chained("sbr", conf, pod)
    assert node.routes(pod) == []
    is_well(node, conf, pod)
    node.ip("-n", pod, "route", "flush", "table", "100")
    assert "route 192.0.2.0/24 via 10.77.0.1 is missing" in node.refused(103, "CHECK", conf, pod)
    node.delete(conf, pod)


def test_routes_that_multus_takes_away(node: Node) -> None:
    """CHECK accepts a missing default route that ``prevResult`` lacks.

    For a default route on another network, Multus removes this one, also from the cached result.
    """
    conf, pod = attached(node, "1.0.0")
    node.ip("-n", pod, "route", "del", "default")
    assert "route 0.0.0.0/0" in node.refused(103, "CHECK", conf, pod)
    conf["prevResult"]["routes"] = [
        route for route in conf["prevResult"]["routes"] if route["dst"] != "0.0.0.0/0"
    ]
    is_well(node, conf, pod)


def test_a_gateway_that_multus_sets(node: Node) -> None:
    """CHECK expects the gateway of ``prevResult``.

    For ``default-route`` in the annotation, Multus sets another gateway, also in the cached result.
    """
    conf, pod = attached(node, "1.0.0")
    node.ip("-n", pod, "route", "replace", "default", "via", "10.77.0.9", "dev", "eth0")
    listed = [route for route in conf["prevResult"]["routes"] if route["dst"] != "0.0.0.0/0"]
    conf["prevResult"]["routes"] = [*listed, {"dst": "0.0.0.0/0", "gw": "10.77.0.9"}]
    is_well(node, conf, pod)
    node.ip("-n", pod, "route", "del", "default")
    assert "route 0.0.0.0/0 via 10.77.0.9 is missing" in node.refused(103, "CHECK", conf, pod)


def test_other_interfaces_and_addresses_of_the_chain(node: Node) -> None:
    """CHECK ignores the interfaces of later plugins, and the addresses of those interfaces."""
    conf, pod = attached(node, "1.0.0")
    more = {"name": "v0", "mac": MAC, "sandbox": f"/run/netns/{pod}"}
    conf["prevResult"]["interfaces"].append(more)
    conf["prevResult"]["ips"].append({"address": "10.88.0.2/24", "interface": 1})
    conf["prevResult"]["ips"].append({"address": "10.89.0.2/24"})
    conf["prevResult"]["routes"].append({"dst": "10.90.0.0/16", "gw": "10.88.0.1"})
    is_well(node, conf, pod)
    conf["prevResult"]["ips"].append({"address": "10.77.0.3/24", "interface": 0})
    assert "address 10.77.0.3/24 is missing" in node.refused(103, "CHECK", conf, pod)


def test_an_mtu_that_is_listed(node: Node) -> None:
    """CHECK expects the MTU that ``prevResult`` lists."""
    conf, pod = attached(node, "1.1.0")
    conf["prevResult"]["interfaces"][0]["mtu"] = 1300
    assert "mtu is 1500, not 1300" in node.refused(103, "CHECK", conf, pod)
    node.ip("-n", pod, "link", "set", "eth0", "mtu", "1300")
    is_well(node, conf, pod)


def test_an_mtu_that_is_asked_for(node: Node) -> None:
    """CHECK compares no MTU before 1.1.0: results have none, so later plugins cannot report a change."""
    conf, pod = attached(node, "1.1.0", mtu=1450)
    node.ip("-n", pod, "link", "set", "eth0", "mtu", "1300")
    assert "mtu is 1300, not 1450" in node.refused(103, "CHECK", conf, pod)
    del conf["prevResult"]["interfaces"][0]["mtu"]
    is_well(node, conf | {"cniVersion": "1.0.0"}, pod)


def test_without_a_previous_result(make_node: MakeNode) -> None:
    """Without ``prevResult``, CHECK compares with the record."""
    node = make_node(vfs=1, backend="python")
    conf, pod = attached(node, "1.0.0", mtu=1450)
    del conf["prevResult"]
    is_well(node, conf, pod)
    node.ip("-n", pod, "link", "set", "eth0", "mtu", "1300", "address", MAC)
    said = node.refused(103, "CHECK", conf, pod)
    assert "mtu is 1300, not 1450" in said
    assert f"mac is {MAC}, not" in said
