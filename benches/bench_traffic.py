"""What goes through a pod's interface, in both attach modes: bytes of TCP, and small datagrams.

From a pod to the other end of the stand-in's veth pair, which is in the host. Modes and protocols take turns.
``SRIOV_FAST_BENCH_TRAFFIC`` sets the rounds (15); each sends for 0.3 s.
"""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import pytest

import report
from ground import ON_CARD
from harness import pod as netns
from stage import HERE, Case, Stage, amount, build, standing

pytestmark = pytest.mark.skipif(ON_CARD, reason="needs the other end of a veth pair")

ROUNDS = amount("TRAFFIC", 15, 1)
MILLISECONDS = 300
MODES = ("resident", "macvlan")
PROTOCOLS = {"tcp": ("Gbit/s", 8e-9), "udp": ("thousand datagrams/s", 1e-3)}
PEER, ADDRESS = "peer0", "10.77.0.250"
CARRIER = 0.2  # seconds

Rates = dict[tuple[str, str], list[float]]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with standing(vfs=1, pods=1) as stage:
        stage.serve("resident")
        build(HERE / "traffic.c", stage.bin / "traffic")
        netns.ip("addr", "add", f"{ADDRESS}/24", "dev", PEER)
        yield stage


@pytest.fixture(scope="module")
def rates(stage: Stage) -> Rates:
    """All of them, measured together before the first is reported."""
    before = stage.ground.state()
    found: Rates = {(mode, protocol): [] for mode in MODES for protocol in PROTOCOLS}
    for _ in range(ROUNDS):
        for mode in random.sample(MODES, len(MODES)):
            case = Case(mode, "host-local", "ADD")
            stage.execute(case)
            time.sleep(CARRIER)
            for protocol in PROTOCOLS:
                found[mode, protocol].append(rate(stage, protocol))
            stage.execute(case._replace(verb="DEL"))
    assert stage.ground.state() == before
    return found


def rate(stage: Stage, protocol: str) -> float:
    pod, host = f"/run/netns/{stage.ground.pods[0]}", stage.ground.namespace
    command = [str(stage.bin / "traffic"), protocol, pod, host, ADDRESS, str(MILLISECONDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@report.mark
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("mode", MODES)
def test_traffic(benchmark: Any, rates: Rates, mode: str, protocol: str) -> None:
    unit, scale = PROTOCOLS[protocol]
    mine, move = rates[mode, protocol], rates["resident", protocol]
    share = median(one / other for one, other in zip(mine, move, strict=True))
    figures = {unit: round(median(mine) * scale, 1), "to move": round(share, 3)}
    seconds = [MILLISECONDS / 1e3] * len(mine)
    report.tell(benchmark, (f"{protocol} from a pod to the host", mode), seconds, **figures)
    if mode == "macvlan":
        report.goal(benchmark, "loss to move, %", (1 - share) * 100, 3)
