"""The modules that a request imports: each import adds to its latency.

With ``-X importtime`` the interpreter prints each imported module and its time.
"""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

from harness.veth import Node

HEAVY = {
    *("argparse", "asyncio", "dataclasses", "datetime", "enum", "heapq", "inspect", "ipaddress", "json"),
    *("locale", "logging", "orjson", "pathlib", "pyroute2", "random", "re", "selectors", "shutil", "signal"),
    *("site", "socket", "struct", "subprocess", "tempfile", "threading", "traceback", "typing", "uuid"),
}

# All modules that an ADD and a DEL with the built-in host-local import; measure a new module before adding
# it. The first sets are not the plugin's: `os` takes 0.9 ms, `contextlib` with its imports 1.9 ms, each
# compiled module 0.15 ms.
OS = {"_collections_abc", "_stat", "genericpath", "os", "posixpath", "stat"}
CONTEXTLIB = {
    *("_collections", "_functools", "_operator", "collections", "contextlib", "functools", "itertools"),
    *("keyword", "operator", "reprlib", "types"),
}
COMPILED = {"_json", "fcntl"}
OTHERS = OS | CONTEXTLIB | COMPILED | {"__future__", "errno", "gc"}
# The plugin's modules that every request imports.
HOT = {
    *("", "common", "common.cni_args", "common.descriptors", "common.errors", "common.executor"),
    *("common.interpreter", "common.ip", "common.json", "common.json_object", "common.log"),
    *("common.paths", "common.record", "kernel", "kernel.backend"),
    *("cni", "cni.config", "cni.fields", "cni.request", "cni.response", "cni.result"),
    *("plugin", "plugin.context", "plugin.process", "plugin.release", "plugin.run"),
    *("ipam", "ipam.kinds"),
    *("vf", "vf.attach", "vf.candidate", "vf.detach", "vf.device", "vf.driver_socket", "vf.find", "vf.irq"),
    *("vf.journal", "vf.locks", "vf.modes", "vf.move", "vf.netns", "vf.programs", "vf.rtnl"),
}
VERBS = {
    "ADD": {"plugin.add", "plugin.addresses", "plugin.prepare", "vf.select", "vf.tuning"},
    "DEL": set[str](),
}
BACKEND = {"_irq", "_nl", "_sysfs"}
HOST_LOCAL = {
    *("ipam.builtin", "ipam.host_local", "ipam.host_local.plugin", "ipam.host_local.ranges"),
    *("ipam.host_local.store", "ipam.keys"),
}


def timed(done_stderr: str) -> set[str]:
    return set(re.findall(r"^import time:.*\| +(\S+)$", done_stderr, re.MULTILINE))


def started() -> set[str]:
    """Return the modules that the interpreter imports without the plugin."""
    argv = [sys.executable, "-X", "importtime", "-IS", "-c", "pass"]
    return timed(subprocess.run(argv, capture_output=True, text=True, check=True).stderr)


def ours(names: set[str]) -> set[str]:
    """Return the plugin's modules among ``names``, without the package's name."""
    return {name.removeprefix("sriov_fast").removeprefix(".") for name in names if "sriov_fast" in name}


def others(names: set[str]) -> set[str]:
    return {name for name in names if "sriov_fast" not in name} - started()


def imported(node: Node, command: str, **more: object) -> set[str]:
    """Execute the plugin and return every module that it imported."""
    node.options = ("-X", "importtime")
    done = node.run(command, **more)  # type: ignore[arg-type]
    node.options = ()
    found = timed(done.stderr)
    assert "sriov_fast._nl" in found, done
    assert done.status == 0 or done.json["code"], done
    return found


def check_others(found: set[str]) -> None:
    """Check the modules of Python; ``contextlib`` imports other small modules in other versions."""
    assert others(found) - OTHERS == set()
    if sys.version_info[:2] == (3, 11):
        assert others(found) == OTHERS


@pytest.fixture
def conf(node: Node) -> dict[str, Any]:
    """A configuration without options and without ``dataDir``."""
    ipam = node.host_local(delegate=False, routes=[{"dst": "0.0.0.0/0"}], dataDir=None)
    return node.conf(ipam=ipam, vf=0)


def test_add_and_del_import_these_and_no_others(node: Node, conf: dict[str, Any]) -> None:
    pod = node.pod()
    for command in ("ADD", "DEL"):
        found = imported(node, command, conf=conf, pod=pod)
        assert ours(found) == HOT | VERBS[command] | BACKEND | HOST_LOCAL, command
        check_others(found)
    assert (node.records(), node.leases()) == ([], [])


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
    """The check can fail: the plain backend imports heavy modules."""
    node.backend = "python"
    node.options = ("-X", "importtime")
    assert "pyroute2" in node.run("STATUS", node.conf(cniVersion="1.1.0")).stderr
