"""CHECK, STATUS and GC on a node with all 250 VFs attached, through the resident server.

The VFs are attached as macvlans, which is faster than moves. ``SRIOV_FAST_BENCH_ROUNDS`` sets the number of
rounds (40).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest

import report
from bench_burst import Kind, execute, listing
from ground import ON_CARD
from stage import Case, Job, Stage, amount, pause, standing

pytestmark = pytest.mark.skipif(ON_CARD, reason="a card has fewer VFs")

ROUNDS = amount("ROUNDS", 40, 1)
VFS, AT_ONCE = 250, 25  # the subnet has 253 addresses
MOST = 50  # milliseconds


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with standing(vfs=VFS, pods=VFS) as stage:
        server = stage.serve("resident")
        for first in range(0, VFS, AT_ONCE):
            attach(stage, first)
        assert len(server.records()) == VFS
        yield stage


def attach(stage: Stage, first: int) -> None:
    """Execute concurrently the ADDs of ``AT_ONCE`` pods, from the pod with number ``first`` on."""
    pods = stage.ground.pods
    stage.ground.pods = pods[first : first + AT_ONCE]
    execute(stage, kind := Kind("macvlan", AT_ONCE, "ADD"), listing(stage, kind))
    stage.ground.pods = pods


def job_of(stage: Stage, verb: str) -> Job:
    """Return the process of a verb, with the configuration that a runtime passes to this verb."""
    job, anew = (stage.job(Case("macvlan", "host-local", each), vf=None) for each in (verb, "ADD"))
    conf = json.loads(Path(job.stdin).read_text()) | ({} if verb == "CHECK" else {"cniVersion": "1.1.0"})
    if verb == "GC":
        valid = [{"containerID": pod, "ifname": "eth0"} for pod in stage.ground.pods]
        conf["cni.dev/valid-attachments"] = valid
    if verb == "CHECK":
        stage.execute(Case("macvlan", "host-local", "DEL"))
        conf["prevResult"] = json.loads(stage.execute(Case("macvlan", "host-local", "ADD"), anew)[1])
    path = stage.root / f"full-{verb}.json"
    path.write_text(json.dumps(conf))
    return job._replace(stdin=str(path))


@report.mark
@pytest.mark.parametrize("verb", ["CHECK", "STATUS", "GC"])
def test_full_node(benchmark: Any, stage: Stage, verb: str) -> None:
    job, seconds = job_of(stage, verb), []
    for _ in range(max(ROUNDS, 1)):
        pause()
        seconds.append(stage.execute(Case("macvlan", "host-local", verb), job)[0].seconds)
    assert len(stage.servers["resident"].records()) == VFS
    line = f"a verb on a node with {VFS} attachments, IPAM host-local", verb
    report.tell(benchmark, line, seconds, **report.spread(seconds))
    report.goal(benchmark, "median, ms", median(seconds) * 1e3, MOST)
