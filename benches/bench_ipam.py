"""The built-in host-local: ADD and DEL on a node with 100 pods, and in a /16 with 4,000 leases."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import pytest

from sriov_fast.ipam.host_local.plugin import HostLocal
from sriov_fast.ipam.keys import Keys

sys.path.insert(0, str(Path(__file__).resolve().parent))

from paired import paired

REAL = next(
    (path for path in ("/usr/lib/cni/host-local", "/opt/cni/bin/host-local") if os.path.exists(path)), ""
)
TAKEN = 4000
PODS = map("{:064x}".format, itertools.count(1 << 200))  # container IDs as runtimes make them


class Store:
    """A network with its leases on the disk of /var/lib if that is writable, as on a node."""

    def __init__(self, root: Path, subnet: str) -> None:
        self.root = root
        self.path = root / "n"
        ipam = {"type": "host-local", "dataDir": str(root), "ranges": [[{"subnet": subnet}]]}
        self.conf = {"cniVersion": "1.0.0", "name": "n", "type": "sriov", "ipam": ipam}
        self.ours_conf = self.conf | {"ipam": {key: ipam[key] for key in ("type", "ranges")}}

    def ours(self, verb: str, pod: str, recorded: tuple[str, ...] = ()) -> dict[str, Any] | None:
        ipam = HostLocal(
            keys=Keys(self.ours_conf),
            container_id=pod,
            ifname="eth0",
            networks=str(self.root),
            recorded=recorded,
        )
        return ipam.start(verb).finish(1.0)

    def add(self, pod: str) -> tuple[str, ...]:
        """Return the addresses as the plugin records them."""
        found = self.ours("ADD", pod)
        assert found
        return tuple(item["address"] for item in found["ips"])

    def both(self) -> None:
        """Execute an ADD and its DEL; the DEL gets the recorded addresses."""
        pod = next(PODS)
        self.ours("DEL", pod, self.add(pod))

    def real(self, verb: str, pod: str) -> None:
        env = {"CNI_COMMAND": verb, "CNI_CONTAINERID": pod, "CNI_NETNS": "/none", "CNI_IFNAME": "eth0"}
        config = json.dumps(self.conf).encode()
        subprocess.run([REAL], input=config, env=env | {"CNI_PATH": "/"}, check=True, capture_output=True)

    def both_real(self) -> None:
        pod = next(PODS)
        self.real("ADD", pod)
        self.real("DEL", pod)

    def point(self, number: int) -> None:
        (self.path / "last_reserved_ip.0").write_text(text(number))


def text(number: int) -> str:
    return f"10.1.{number >> 8}.{number & 255}"


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    where = "/var/lib" if os.access("/var/lib", os.W_OK) else None
    path = Path(tempfile.mkdtemp(dir=where, prefix="sriov-fast-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def small(root: Path) -> Store:
    """A node with 100 pods."""
    store = Store(root / "small", "10.2.0.0/24")
    for _ in range(100):
        store.add(next(PODS))
    return store


@pytest.fixture(scope="module")
def large(root: Path) -> Store:
    """A /16 with 4,000 leases of consecutive addresses."""
    store = Store(root / "large", "10.1.0.0/16")
    store.path.mkdir(parents=True)
    for number in range(2, TAKEN + 2):
        (store.path / text(number)).write_bytes(b"%064x\r\neth0" % number)
    return store


def timed(call: Callable[[], object]) -> float:
    begin = perf_counter()
    call()
    return (perf_counter() - begin) * 1e6


def note(benchmark: Any, **runs: list[float]) -> None:
    """Add the median and the 99th percentile of each run, in microseconds."""
    for name, times in runs.items():
        ordered = sorted(times)
        benchmark.extra_info[f"{name} p50 us"] = round(median(times), 1)
        benchmark.extra_info[f"{name} p99 us"] = round(ordered[int(len(ordered) * 0.99)], 1)


def median(times: list[float]) -> float:
    return sorted(times)[len(times) // 2]


def cycles(store: Store, last: int, rounds: int = 200) -> tuple[list[float], list[float]]:
    """Return the microseconds of ADDs and of their DELs; ``last`` is the number of the latest lease."""
    adds, deletes = [], []
    for _ in range(rounds):
        store.point(last)
        pod = next(PODS)
        begin = perf_counter()
        recorded = store.add(pod)
        adds.append((perf_counter() - begin) * 1e6)
        deletes.append(timed(lambda pod=pod, recorded=recorded: store.ours("DEL", pod, recorded)))  # type: ignore[misc]
    return adds, deletes


def test_a_small_store(benchmark: Any, small: Store) -> None:
    benchmark.group = "IPAM"
    if REAL:
        times = paired({"in turns": small.both, "exec": small.both_real}, rounds=30)
        benchmark.extra_info |= {f"{name} us": round(spent, 1) for name, spent in times.items()}
    adds, deletes = cycles(small, 0)
    note(benchmark, add=adds, delete=deletes)
    benchmark(small.both)


@pytest.mark.parametrize("last", [TAKEN + 1, 1], ids=["next", "all in the way"])
def test_a_large_store(benchmark: Any, large: Store, last: int) -> None:
    """The next address is free, or all leased addresses precede the first free one."""
    benchmark.group = "IPAM"
    begin = process_time()
    adds, deletes = cycles(large, last)
    spent = (process_time() - begin) / len(adds) * 1e6
    note(benchmark, add=adds, delete=deletes)
    benchmark.extra_info["ADD and DEL, processor us"] = round(spent, 1)
    benchmark.pedantic(large.both, setup=lambda: large.point(last), rounds=50)


def test_a_del_without_a_record(benchmark: Any, large: Store) -> None:
    """A DEL without a record, as after a reboot or for another plugin's pod, reads all files."""
    benchmark.group = "IPAM"
    benchmark.pedantic(lambda: large.ours("DEL", f"{0:064x}"), rounds=20)


@pytest.mark.skipif(not REAL, reason="needs the original host-local")
def test_a_large_store_and_the_real_one(benchmark: Any, large: Store) -> None:
    """Measure the original plugin for comparison: it reads all files in ADD and in DEL."""
    benchmark.group = "IPAM"
    large.point(TAKEN + 1)
    benchmark.pedantic(large.both_real, rounds=10)
