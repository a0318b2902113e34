"""What a whole call imports is its latency: none of the heavy modules may come in on the way."""

from __future__ import annotations

import re

import pytest
from node import Node

HEAVY = {
    *("argparse", "asyncio", "dataclasses", "datetime", "enum", "heapq", "inspect", "ipaddress", "json"),
    *("locale", "logging", "orjson", "pathlib", "pyroute2", "random", "re", "selectors", "shutil", "signal"),
    *("site", "socket", "struct", "subprocess", "tempfile", "threading", "traceback", "typing", "uuid"),
}


def imported(node: Node, command: str, **more: object) -> set[str]:
    """Execute the plugin and return every module that it imported."""
    node.options = ("-X", "importtime")
    done = node.run(command, **more)  # type: ignore[arg-type]
    node.options = ()
    found = re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE)
    assert {"sriov_fast.plugin", "sriov_fast._nl", "sriov_fast._irq"} <= set(found), done
    return set(found)


def test_every_verb(node: Node) -> None:
    pod = node.pod()
    conf = node.conf(ipam=node.host_local(routes=[{"dst": "0.0.0.0/0"}]), cores=[1], vf=0)
    call = {"conf": conf, "pod": pod}
    assert imported(node, "ADD", **call, args="IgnoreUnknown=1;K8S_POD_NAME=p") & HEAVY == set()
    assert node.addresses("eth0", pod) == ["10.77.0.2/24"]
    newest = conf | {"cniVersion": "1.1.0", "cni.dev/valid-attachments": []}
    bodies = {"CHECK": conf, "STATUS": newest, "DEL": conf, "GC": newest, "VERSION": {}}
    for command, body in bodies.items():
        assert imported(node, command, conf=body, pod=pod) & HEAVY == set(), command
    assert (node.records(), node.leases()) == ([], [])


@pytest.mark.parametrize("more", [{"vf": 99}, {"master": "pf9"}, {"ipam": {"type": "none"}}])
def test_a_refusal(node: Node, more: dict[str, object]) -> None:
    assert imported(node, "ADD", conf=node.conf(**more), pod=node.pod()) & HEAVY == set()


def test_the_guard_sees(node: Node) -> None:
    """The plain backend is heavy, and found to be: the guard can fail."""
    node.backend = "python"
    node.options = ("-X", "importtime")
    assert "pyroute2" in node.run("STATUS", node.conf(cniVersion="1.1.0")).stderr
