"""The number of netlink requests: each takes RTNL, the lock of all network configuration of a node."""

from __future__ import annotations

from typing import Any

import pytest

from harness.netlink_sends import Sends, count, wrap
from harness.server import needs_strace
from harness.veth import Node

pytestmark = needs_strace

MOST = 5


def traced(node: Node, verb: str, conf: dict[str, Any], pod: str, **more: Any) -> list[Sends]:
    """Run a verb; return the netlink traffic of the plugin and of its announcing child process."""
    output = node.root / f"{verb}.strace"
    done = node.run(verb, conf, pod, wrap=wrap(output), **more)
    assert done.status == 0, done
    return count(output)


def ipam(node: Node) -> dict[str, Any]:
    return node.host_local(routes=[{"dst": "0.0.0.0/0"}, {"dst": "192.0.2.0/24", "gw": "10.77.0.3"}])


@pytest.mark.parametrize("addressed", [False, True], ids=["no IPAM", "host-local"])
def test_requests(node: Node, addressed: bool) -> None:
    pod = node.pod()
    conf = node.conf(ipam=ipam(node) if addressed else None)
    for verb in ("ADD", "DEL"):
        sends = traced(node, verb, conf, pod)
        assert 0 < sum(process.requests for process in sends) <= MOST, f"{verb}: {sends}"


def test_many_addresses_are_one_request(node: Node) -> None:
    """Addresses and routes share one request, independent of their number."""
    pod = node.pod()
    subnets = [[{"subnet": f"10.{third}.0.0/24"}] for third in range(8)]
    many = {"type": "host-local", "ranges": subnets, "routes": [{"dst": f"192.0.{n}.0/24"} for n in range(8)]}
    conf = node.conf(ipam=many | {"dataDir": str(node.root / "ipam")})
    plugin = traced(node, "ADD", conf, pod)[0]
    assert plugin.messages >= 16
    assert plugin.requests <= MOST
    node.delete(conf, pod)


def test_the_plain_backend_is_seen_too(node: Node) -> None:
    """The counter also counts the sends of the plain backend."""
    pod = node.pod()
    sends = traced(node, "ADD", node.conf(), pod, env={"SRIOV_FAST_BACKEND": "python"})
    assert sum(process.requests for process in sends) > 0
    node.delete(node.conf(), pod)
