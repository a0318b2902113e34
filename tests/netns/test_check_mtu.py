"""CHECK of an MTU that a later plugin of the chain has set on the pod's interface."""

from __future__ import annotations

import pytest

from harness.veth import Node

pytestmark = pytest.mark.modes("resident")


@pytest.mark.parametrize("attach", ["move", "macvlan"])
def test_a_result_with_another_mtu(node: Node, attach: str) -> None:
    """With a macvlan, CHECK accepts another MTU of the VF unless it is lower than the macvlan's."""
    pod, conf = node.pod(), node.conf(vf=0, attach=attach, mtu=1400, cniVersion="1.1.0")
    result = node.add(conf, pod)
    node.ip("-n", pod, "link", "set", "eth0", "mtu", "1300")
    result["interfaces"][0]["mtu"] = 1300
    node.check(conf, pod, result)
    if attach == "macvlan":
        node.nip("link", "set", "pf0v0", "mtu", "1290")  # the kernel lowers the macvlan's as well
        said = node.refused(103, "CHECK", conf | {"prevResult": result}, pod)
        assert "pf0v0 in the host has mtu 1290, less than 1300" in said
