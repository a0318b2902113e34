"""Pod sandboxes through containerd's CRI, one at a time: the latency of a pod's network for a user.

The figure is the time of a sandbox with a network minus that of a sandbox in the host's network, in the same
round. A round runs this plugin in both attach modes, the reference plugins ``bridge`` and ``macvlan`` (mode
passthru, on a separate VF) and the host's network, in random order. The reference plugins execute host-local;
this plugin uses its built-in one.

``SRIOV_FAST_BENCH_SANDBOXES`` sets the number of rounds (60, in the lab 3). No round starts after
``SRIOV_FAST_BENCH_SECONDS`` (120). Needs containerd, runc and the reference plugins (Debian: containerd,
runc, containernetworking-plugins), and grpcio-tools.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pytest

import ground
import report
from lab import containerd
from stage import Stage, amount, pause, standing

pytest.importorskip("grpc_tools", reason="needs grpcio-tools")

from lab import cri

ROUNDS = amount("SANDBOXES", 60, 3)
SECONDS = amount("SECONDS", 120, 120)
HOST = "host"
REFERENCES = ("bridge", "macvlan-cni")
OURS = ("move", "macvlan")
BRIDGE = "bench0"
LABELS = {
    HOST: "no network of its own (host's)",
    "bridge": "reference bridge",
    "macvlan-cni": "reference macvlan, passthru",
    "move": "sriov, resident, move",
    "macvlan": "sriov, resident, macvlan",
}


class Sandbox(NamedTuple):
    """Seconds that the runtime took to start and to stop a sandbox."""

    start: float
    stop: float


Samples = dict[str, dict[int, Sandbox]]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    for program in ("containerd", "runc"):
        if not shutil.which(program):
            pytest.skip(f"needs {program}")
    if not all(os.access(f"{ground.DELEGATES}/{name}", os.X_OK) for name in ("bridge", "macvlan")):
        pytest.skip("needs the plugins bridge and macvlan (containernetworking-plugins)")
    with standing(vfs=1 + len(OURS), pods=1) as stage:
        stage.serve("resident")
        yield stage


@pytest.fixture(scope="module")
def samples(stage: Stage) -> Samples:
    """Measure all sandboxes before the first report."""
    before = stage.ground.state()
    given = containerd.Cri(networks(stage), plugins(stage))
    environ = stage.environ("resident")
    found: Samples = {}
    subprocess.run(["ip", "link", "set", stage.ground.netdev(0), "up"], check=True)
    try:
        with (
            containerd.running(stage.root / "containerd", given, environ) as runtime,
            cri.Sandboxes(runtime.socket) as sandboxes,
        ):
            one_round(sandboxes, 0, {})  # warm
            measure(sandboxes, found)
    finally:
        subprocess.run(["ip", "link", "set", stage.ground.netdev(0), "down"], check=True)
        subprocess.run(["ip", "link", "del", BRIDGE], check=False, capture_output=True)
    assert stage.ground.state() == before
    return found


def plugins(stage: Stage) -> Path:
    """Return a directory with the reference plugins and this project's ``sriov``."""
    directory = stage.root / "plugins"
    directory.mkdir()
    for path in Path(ground.DELEGATES).iterdir():
        (directory / path.name).symlink_to(path)
    (directory / "sriov").unlink(missing_ok=True)
    (directory / "sriov").symlink_to(stage.bin / "client")
    return directory


def networks(stage: Stage) -> dict[str, dict[str, Any]]:
    """Return the network of each runtime handler; the reference macvlan uses VF 0."""
    bridge = {"type": "bridge", "bridge": BRIDGE}
    macvlan = {"type": "macvlan", "mode": "passthru", "master": stage.ground.netdev(0)}
    plugins = {
        name: conf | {"ipam": ipam(stage, name)}
        for name, conf in zip(REFERENCES, (bridge, macvlan), strict=True)
    }
    plugins |= {
        name: stage.document("host-local", vf=1 + number) | {"attach": name}
        for number, name in enumerate(OURS)
    }
    return {name: {"cniVersion": "1.0.0", "name": name, "plugins": [conf]} for name, conf in plugins.items()}


def ipam(stage: Stage, network: str) -> dict[str, Any]:
    return {"type": "host-local", "subnet": ground.SUBNET, "dataDir": str(stage.root / "ipam" / network)}


def measure(sandboxes: cri.Sandboxes, found: Samples) -> None:
    end = time.monotonic() + SECONDS
    for number in range(max(ROUNDS, 1)):
        if number and time.monotonic() > end:
            return
        one_round(sandboxes, number, found)


def one_round(sandboxes: cri.Sandboxes, number: int, found: Samples) -> None:
    names = [HOST, *REFERENCES, *OURS]
    for name in random.sample(names, len(names)):
        pause()
        found.setdefault(name, {})[number] = one_sandbox(sandboxes, name, number)


def one_sandbox(sandboxes: cri.Sandboxes, name: str, number: int) -> Sandbox:
    begin = time.monotonic()
    if name == HOST:
        sandbox = sandboxes.run(f"{name}-{number}", OURS[0], host_network=True)
    else:
        sandbox = sandboxes.run(f"{name}-{number}", name)
    started = time.monotonic()
    assert bool(sandboxes.address(sandbox)) == (name != HOST)
    stopping = time.monotonic()
    sandboxes.stop(sandbox)
    stopped = time.monotonic()
    sandboxes.remove(sandbox)
    return Sandbox(started - begin, stopped - stopping)


# --- reports


def above_host(samples: Samples, name: str, field: str) -> float:
    """Return the median difference to the host's network in seconds, by rounds."""
    mine, host = samples[name], samples[HOST]
    return float(median(getattr(mine[number], field) - getattr(host[number], field) for number in mine))


@report.mark
@pytest.mark.parametrize("name", [HOST, *REFERENCES, *OURS])
@pytest.mark.parametrize("field", ["start", "stop"])
def test_sandbox(benchmark: Any, samples: Samples, field: str, name: str) -> None:
    durations = [getattr(sample, field) for sample in samples[name].values()]
    above = above_host(samples, name, field)
    figures = {"above_host_ms": report.milliseconds(above)} | report.spread(durations)
    line = f"{field} of a pod sandbox through containerd's CRI", LABELS[name]
    report.tell(benchmark, line, durations, **figures, rounds=len(durations))
    if name == "macvlan" and field == "start":
        least = min(above_host(samples, other, field) for other in REFERENCES)
        report.goal(
            benchmark, "above the host's network, ms; less than the references", above * 1e3, least * 1e3
        )
