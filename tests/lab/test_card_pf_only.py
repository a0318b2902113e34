"""``pfOnly`` on a real card: the PF moves into the pod and back, also if the namespace ends before DEL."""

from __future__ import annotations

from typing import Any

from harness.card import Card, Node
from harness.pod import ip, link


def config(node: Node, card: Card, **more: Any) -> dict[str, Any]:
    base = {"master": card.pf, "pfOnly": True, "cniVersion": "1.1.0", "ipam": node.host_local(delegate=False)}
    return node.conf(**base | more)


def of_pf(card: Card) -> dict[str, Any]:
    shown = link(card.pf)
    return {key: shown[key] for key in ("ifname", "address", "mtu", "vfinfo_list")} | {
        "up": "UP" in shown["flags"]
    }


def test_the_pf_comes_back_as_it_was(node: Node, second: Card) -> None:
    before, pod, conf = of_pf(second), node.pod(), config(node, second, mtu=1400)
    result = node.add(conf, pod)
    shown = link("eth0", pod)
    assert (shown["mtu"], shown["address"], "UP" in shown["flags"]) == (1400, before["address"], True)
    node.check(conf, pod, result)
    assert node.run("STATUS", conf).status == 0
    assert "not free: it belongs to container" in node.refused(11, "ADD", conf, node.pod())
    vf_conf = node.conf(master=second.pf, ipam=None)
    assert f"is in a pod: it belongs to container {pod}, eth0" in node.refused(11, "ADD", vf_conf, node.pod())
    ip("-n", pod, "link", "set", "eth0", "down")
    ip("-n", pod, "link", "set", "eth0", "address", "02:00:00:00:00:77", "mtu", "1300")
    node.delete(conf, pod)
    assert (of_pf(second), node.records()) == (before, [])


def test_the_namespace_ends_first(node: Node, second: Card) -> None:
    """The kernel returns the PF with the name that it has in the pod; DEL and GC rename the PF."""
    before, conf = of_pf(second), config(node, second)
    for release in (node.delete, lambda *_: node.collect()):
        pod = node.pod()
        node.add(conf, pod)
        ip("netns", "del", pod)
        release(conf, pod)
        assert (of_pf(second), node.records()) == (before, [])
