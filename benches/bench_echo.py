"""Time from the start of an ADD to the first answered echo request through the card.

A pod on VF 0 answers. A second pod is attached to VF 1, in turns by a move and by a macvlan on a warm VF
(``sriov-fast warm``). Needs a card, such as the lab's: veth stand-ins have no link to each other.
``SRIOV_FAST_BENCH_ECHOES`` sets the number of rounds (20, in the lab 5).
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import pytest

import report
from ground import ON_CARD
from harness import pod as netns
from stage import Stage, amount, pause, standing

pytestmark = pytest.mark.skipif(not ON_CARD, reason="stand-ins have no link to each other")

ROUNDS = amount("ECHOES", 20, 5)
PATIENCE = 30.0  # seconds for the first answer
EVERY = 0.002  # seconds between two requests
ECHO = struct.pack(">BBHHH", 8, 0, 0xF7FE, 1, 0)  # RFC 792: type 8, checksum, identifier 1, number 0
MODES = ("move", "macvlan")


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with standing(vfs=2, pods=2) as stage:
        stage.serve("resident")
        yield stage


@pytest.fixture(scope="module")
def echoes(stage: Stage) -> dict[str, list[float]]:
    """Measure the seconds to the first answer, by mode."""
    before = stage.ground.state()
    output = stage.attach("ADD", "move", 0)
    address = json.loads(output)["ips"][0]["address"].partition("/")[0]
    found: dict[str, list[float]] = {mode: [] for mode in MODES}
    for number in range(ROUNDS + 1):
        for mode in MODES:
            seconds = echo(stage, mode, address)
            if number:  # round 0 fills the caches
                found[mode].append(seconds)
    stage.attach("DEL", "move", 0)
    assert stage.ground.state() == before
    return found


def echo(stage: Stage, mode: str, address: str) -> float:
    """Attach the second pod; return the seconds from the start of the ADD to the first answer."""
    warm(stage, *([] if mode == "macvlan" else ["--off"]))
    pause()
    begin = time.monotonic()
    stage.attach("ADD", mode, 1)
    seconds = answered(stage.ground.pods[1], address) - begin
    stage.attach("DEL", mode, 1)
    warm(stage, "--off")
    return seconds


def warm(stage: Stage, *words: str) -> None:
    masters = stage.ground.masters()
    pf = masters if isinstance(masters, str) else masters[0]
    command = [str(stage.bin / "sriov-fast"), "warm", pf, *words]
    done = subprocess.run(command, env=stage.environ("resident"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def answered(pod: str, address: str) -> float:
    """Send an echo request every ``EVERY`` seconds until one is answered; return the time of the answer."""
    with netns.inside(pod), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as icmp:
        icmp.settimeout(EVERY)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                icmp.sendto(ECHO, (address, 0))
                while True:
                    answer = icmp.recv(256)
                    if answer[20] == 0:  # echo reply, behind the IP header
                        return time.monotonic()
            except OSError:  # no answer yet, or no route yet
                continue
    raise AssertionError(f"{address} does not answer within {PATIENCE:g} s")


@report.mark
@pytest.mark.parametrize("mode", MODES)
def test_first_echo(benchmark: Any, echoes: dict[str, list[float]], mode: str) -> None:
    share = median(echoes[mode]) / median(echoes["move"])
    line = "start of an ADD to the first answered echo request", mode
    report.tell(benchmark, line, echoes[mode], **report.spread(echoes[mode]), **{"to move": round(share, 2)})
