"""ADD and DEL through the DaemonSet's server and through the host's, in pairs on one VF of a real card.

Both servers run, each with its own run directory. The same client uses both in random order. The figure is
the median of the pairs' ratios with its 95 % interval. ``SRIOV_FAST_BENCH_PAIRS`` sets the number of pairs
(40). Needs the lab with the image::

    python -m lab pytest --image --pfs 1 --cpus 4 --timeout 900 -- -q -s benches/bench_daemonset.py
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from harness.card import Node
from harness.daemonset import FIRST, Daemon, daemon, serves
from harness.lab_fixtures import _as_it_was, card, cards, known, node, resident, runtime
from harness.server import Server
from harness.waiting import wait_for

__all__ = ["_as_it_was", "card", "cards", "daemon", "known", "node", "resident", "runtime"]  # fixtures

pytestmark = pytest.mark.modes("own")

PAIRS = int(os.environ.get("SRIOV_FAST_BENCH_PAIRS", "40"))
CONTAINER, HOST = "DaemonSet", "host"
VERBS = ("ADD", "DEL")


def seconds(node: Node, socket: Path, conf: dict[str, Any], pod: str) -> list[float]:
    """Return the seconds of an ADD and of the DEL after it."""
    spent = []
    for verb in VERBS:
        time.sleep(random.uniform(0, 0.012))
        begin = time.monotonic()
        done = node.run(verb, conf, pod, env={"SRIOV_FAST_SOCKET": str(socket)})
        spent.append(time.monotonic() - begin)
        assert done.status == 0, done
    return spent


def interval(values: list[float]) -> tuple[float, float, float]:
    """Return the median and its 95 % interval by order statistics."""
    ordered, half = sorted(values), 0.98 * len(values) ** 0.5
    low, high = int(len(values) / 2 - half), int(len(values) / 2 + half)
    return median(ordered), ordered[max(low, 0)], ordered[min(high, len(ordered) - 1)]


def test_daemonset_and_host(node: Node, daemon: Daemon, tmp_path: Path) -> None:
    conf = node.conf(vf=0, ipam={"type": "host-local", "subnet": "10.82.0.0/24"})
    pod = node.pod()
    daemon.start(FIRST)
    wait_for(lambda: serves(node), "the container does not serve")
    run = tmp_path / "run"
    words = [sys.executable, "-m", "sriov_fast.cli", "serve", f"--metrics=unix:{run}/metrics.sock"]
    host = Server(words, os.environ | {"SRIOV_FAST_RUN": str(run)}, tmp_path / "log")
    sockets = {CONTAINER: Path("/run/sriov-fast/sriov.sock"), HOST: run / "sriov.sock"}
    wait_for(sockets[HOST].exists, "the host's server does not serve")
    taken: dict[str, list[list[float]]] = {CONTAINER: [], HOST: []}
    try:
        for turn in range(PAIRS + 2):
            for name in random.sample(list(sockets), 2):
                spent = seconds(node, sockets[name], conf, pod)
                if turn >= 2:
                    taken[name].append(spent)
    finally:
        host.stop()
    for number, verb in enumerate(VERBS):
        ours, theirs = ([each[number] for each in taken[name]] for name in (CONTAINER, HOST))
        ratio, low, high = interval([one / other for one, other in zip(ours, theirs, strict=True)])
        print(f"\n{verb}: {median(ours) * 1000:.1f} and {median(theirs) * 1000:.1f} ms")
        print(f"  ratio of the pairs: {ratio:.3f} ({low:.3f} to {high:.3f})")
