"""Throughput of a pod's interface in both attach modes: bytes of TCP, and small datagrams.

The pod sends to the other end of the stand-in's veth pair, which is in the host. On a card it sends to
another pod with a moved VF. Each round measures both modes in random order, with both protocols.
``SRIOV_FAST_BENCH_TRAFFIC`` sets the number of rounds (15); each measurement sends for 0.3 s.
"""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Iterator
from statistics import median
from typing import Any, NamedTuple

import pytest

import report
from ground import ON_CARD
from harness import pod as netns
from stage import HERE, Stage, amount, build, standing

ROUNDS = amount("TRAFFIC", 15, 1)
MILLISECONDS = 300
MODES = ("move", "macvlan")
PROTOCOLS = {"tcp": ("Gbit/s", 8e-9), "udp": ("thousand datagrams/s", 1e-3)}
PEER, ADDRESS = "peer0", "10.77.0.250"
SENDER = 1 if ON_CARD else 0  # the pod's number
CARRIER = 0.2  # seconds

Rates = dict[tuple[str, str], list[float]]


class Receiver(NamedTuple):
    """The destination of the traffic: the path of a network namespace, and an address in it."""

    netns: str
    address: str


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with standing(vfs=2, pods=2) as stage:
        stage.serve("resident")
        build(HERE / "traffic.c", stage.bin / "traffic")
        yield stage


@pytest.fixture(scope="module")
def receiver(stage: Stage) -> Iterator[Receiver]:
    if not ON_CARD:
        netns.ip("addr", "add", f"{ADDRESS}/24", "dev", PEER)
        yield Receiver(stage.ground.namespace, ADDRESS)
        return
    output = json.loads(stage.attach("ADD", "move", 0))
    yield Receiver(f"/run/netns/{stage.ground.pods[0]}", output["ips"][0]["address"].partition("/")[0])
    stage.attach("DEL", "move", 0)


@pytest.fixture(scope="module")
def rates(stage: Stage, receiver: Receiver) -> Rates:
    """Measure all rates before the first report."""
    before = stage.ground.state()
    found: Rates = {(mode, protocol): [] for mode in MODES for protocol in PROTOCOLS}
    for _ in range(ROUNDS):
        for mode in random.sample(MODES, len(MODES)):
            stage.attach("ADD", mode, SENDER)
            time.sleep(CARRIER)
            for protocol in PROTOCOLS:
                found[mode, protocol].append(rate(stage, receiver, protocol))
            stage.attach("DEL", mode, SENDER)
    assert stage.ground.state() == before
    return found


def rate(stage: Stage, receiver: Receiver, protocol: str) -> float:
    sender = f"/run/netns/{stage.ground.pods[SENDER]}"
    command = [str(stage.bin / "traffic"), protocol, sender, *receiver, str(MILLISECONDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@report.mark
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("mode", MODES)
def test_traffic(benchmark: Any, rates: Rates, mode: str, protocol: str) -> None:
    unit, scale = PROTOCOLS[protocol]
    mine, move = rates[mode, protocol], rates["move", protocol]
    share = median(one / other for one, other in zip(mine, move, strict=True))
    figures = {unit: round(median(mine) * scale, 1), "to move": round(share, 3)}
    seconds = [MILLISECONDS / 1e3] * len(mine)
    report.tell(benchmark, (f"{protocol} from a pod", mode), seconds, **figures)
    if mode == "macvlan":
        report.goal(benchmark, "loss to move, %", (1 - share) * 100, 3)
