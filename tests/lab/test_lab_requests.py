"""How often the plugin asks the kernel on a real card, with everything set that takes a request."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

from netlink_sends import Sends, count, wrap  # noqa: E402

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace"),
]

MOST = {"ADD": 7, "DEL": 7}
INSTALLED = Path("/opt/cni/bin/sriov")
PLUGINS = "/opt/cni/bin:/usr/lib/cni"
MAC = "02:00:00:00:5f:10"


@pytest.fixture(scope="module")
def pf() -> str:
    named = os.environ.get("SRIOV_FAST_PF", "").replace(",", " ").split()
    found = sorted(path.parts[4] for path in Path("/sys/class/net").glob("*/device/sriov_totalvfs"))
    return (named + found)[0]


@pytest.fixture(scope="module")
def executable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one that is installed; without one, what ``sriov-fast install`` would write."""
    if INSTALLED.exists():
        return INSTALLED
    from sriov_fast.cli import install

    path = tmp_path_factory.mktemp("bin") / "sriov"
    text = install.script(install.PROGRAMS["sriov"], sys.executable, install.search_path())
    install.write_executable(path, text)
    return path


@pytest.fixture
def pod() -> Iterator[str]:
    name = f"pod-{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield name
    subprocess.run(["ip", "netns", "del", name], check=True)


def conf(pf: str) -> dict[str, Any]:
    static = {
        "type": "static",
        "addresses": [{"address": "10.99.7.2/24"}],
        "routes": [{"dst": "10.98.0.0/16"}],
    }
    base = {"cniVersion": "1.0.0", "name": "requests", "type": "sriov", "master": pf, "vlan": 100, "mac": MAC}
    return base | {"ipam": static}


def execute(executable: Path, verb: str, given: dict[str, Any], pod: str, output: Path) -> list[Sends]:
    environ = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": pod,
        "CNI_NETNS": f"/run/netns/{pod}",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "CORES=0",
        "CNI_PATH": PLUGINS,
        "PATH": os.environ["PATH"],
        "SRIOV_FAST_BACKEND": "cython",
    }
    done = subprocess.run(
        [*wrap(output), str(executable)],
        env=environ,
        input=json.dumps(given).encode(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    return count(output)


def test_requests_with_mac_vlan_and_cores(executable: Path, pf: str, pod: str, tmp_path: Path) -> None:
    """In all: those of the child that announces the addresses, too."""
    given = conf(pf)
    for verb in ("ADD", "DEL"):
        sends = execute(executable, verb, given, pod, tmp_path / verb)
        requests = sum(process.requests for process in sends)
        assert 0 < requests <= MOST[verb], f"{verb}: {sends}\n{shown(tmp_path / verb)}"


def shown(output: Path) -> str:
    """Return the sends for a failure's text."""
    lines = output.read_text().splitlines()
    return "\n".join(line[:300] for line in lines if "send" in line)
