"""``sriov-fast trace`` with the plugin: it executes real ADDs and DELs, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from harness.veth import Node
from harness.waiting import wait_for

pytestmark = pytest.mark.modes("process", "resident", "deferred")


def command(node: Node, conf: dict[str, Any], *words: str) -> tuple[list[str], dict[str, str]]:
    """Return the command ``sriov-fast trace`` for this node, and its environment."""
    program = node.root / "plugin"
    program.write_text(f"#!/bin/sh\nexec {shlex.join(node.command())}\n")
    program.chmod(0o755)
    (node.root / "conf").write_text(json.dumps(conf))
    env = {key: value for key, value in node.environment("", "", "", "", "").items() if key != "CNI_IFNAME"}
    paths = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2] / "src"), *sys.path])}
    given = ["--plugin", str(program), "--conf", str(node.root / "conf"), *words]
    return [sys.executable, "-m", "sriov_fast.cli", "trace", *given], env | paths


def trace(node: Node, conf: dict[str, Any], *words: str) -> subprocess.CompletedProcess[str]:
    line, env = command(node, conf, *words)
    done = subprocess.run(line, env=env, capture_output=True, text=True, check=False, timeout=120)
    node.settle()
    return done


def namespaces() -> set[str]:
    return {name for name in os.listdir("/run/netns") if name.startswith("sriov-fast-trace-")}


def test_an_add_and_its_del(node: Node, mode: str) -> None:
    before = node.snapshot()
    svg = node.root / "picture.svg"
    conf = node.conf(ipam=node.host_local())
    done = trace(node, conf, "--verb", "both", "--repeat", "2", "--json", "-", "--svg", str(svg))
    assert done.returncode == 0, done.stderr
    add, delete = json.loads(done.stdout)["waterfalls"]
    assert (add["verb"], delete["verb"]) == ("ADD", "DEL")
    for item in (add, delete):
        assert item["mode"] == {"process": "in-process"}.get(mode, "resident")
        assert item["spans"][0]["name"] == "process start"
        assert sum(item["shares_ms"].values()) == pytest.approx(item["total_ms"])
        assert all(0 <= span["start_ms"] <= span["end_ms"] <= item["total_ms"] for span in item["spans"])
    kinds = {span["name"]: span["kind"] for span in add["spans"]}
    assert kinds["move"] == kinds["addresses and routes"] == "kernel"
    assert "ipam" in kinds.values()
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    assert node.snapshot() == before
    assert not list(node.run_dir.glob("trace-*"))
    assert not namespaces()


def test_an_error(node: Node) -> None:
    """``trace`` shows the plugin's error; VF and address are free afterwards."""
    before = node.snapshot()
    pod = node.pod()
    done = trace(node, node.conf(master="nope"), "--netns", pod)
    assert done.returncode == 1
    assert "nope" in done.stderr
    assert "ADD failed: code " in done.stderr
    node.delegate("bad", '[ "$CNI_COMMAND" != ADD ] || { echo \'{"code": 99, "msg": "odd"}\'; exit 1; }')
    done = trace(node, node.conf(ipam={"type": "bad"}))
    assert done.returncode == 1
    assert "odd" in done.stderr
    assert node.calls() == ["ADD", "DEL", "DEL"]  # the plugin's undo, and the DEL of ``trace``
    assert node.snapshot()["vfs"] == before["vfs"]
    assert node.records() == []
    assert not namespaces()


@pytest.mark.modes("process", "resident")
def test_interrupted(node: Node) -> None:
    """After SIGINT at any time, ``trace`` has released everything and deleted its namespace."""
    before = node.snapshot()
    line, env = command(node, node.conf(ipam=node.host_local()), "--repeat", "1000")
    for delay in (0.3, 0.7):
        process = subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for(lambda process=process: node.records() or process.poll() is not None, "no ADD")
        assert process.poll() is None, process.communicate()
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)
        assert process.returncode == 130, said
        node.settle()
        assert node.snapshot() == before
        assert not namespaces()
