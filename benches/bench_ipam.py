"""The built-in host-local: ADD and DEL on a small and on a big, nearly full store; the real one beside it."""

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
from time import perf_counter
from typing import Any

import pytest

from sriov_fast.ipam.host_local import HostLocal

sys.path.insert(0, str(Path(__file__).resolve().parent))

from paired import paired

REAL = next(
    (path for path in ("/usr/lib/cni/host-local", "/opt/cni/bin/host-local") if os.path.exists(path)), ""
)
TAKEN = 60_000
LIMIT = 2000.0  # microseconds for an allocation, whatever is taken
PODS = map("{:064x}".format, itertools.count(1 << 200))  # container IDs as runtimes make them


class Store:
    """A network of its own, on the disk that /var/lib is on, and the index on tmpfs, as on a node."""

    def __init__(self, root: Path, run: Path, subnet: str) -> None:
        self.root = root
        self.path = root / "n"
        self.run = str(run)
        ipam = {"type": "host-local", "dataDir": str(root), "ranges": [[{"subnet": subnet}]]}
        self.conf = {"cniVersion": "1.0.0", "name": "n", "type": "sriov", "ipam": ipam}
        self.ours_conf = self.conf | {"ipam": {key: ipam[key] for key in ("type", "ranges")}}

    def ours(self, verb: str, pod: str) -> dict[str, Any] | None:
        ipam = HostLocal(
            config=self.ours_conf,
            container_id=pod,
            ifname="eth0",
            networks=str(self.root),
            runtime_dir=self.run,
        )
        return ipam.start(verb).finish(1.0)

    def real(self, verb: str, pod: str) -> None:
        env = {"CNI_COMMAND": verb, "CNI_CONTAINERID": pod, "CNI_NETNS": "/none", "CNI_IFNAME": "eth0"}
        config = json.dumps(self.conf).encode()
        subprocess.run([REAL], input=config, env=env | {"CNI_PATH": "/"}, check=True, capture_output=True)

    def pod(self) -> str:
        return next(PODS)

    def pair(self, serve: Callable[[str, str], object]) -> Callable[[], None]:
        """Return an ADD and its DEL as one call."""

        def both() -> None:
            pod = self.pod()
            serve("ADD", pod)
            serve("DEL", pod)

        return both

    def point(self, address: str) -> None:
        (self.path / "last_reserved_ip.0").write_text(address)

    def boot(self) -> None:
        """Lose what is on tmpfs."""
        shutil.rmtree(self.run, ignore_errors=True)

    def forget(self) -> None:
        """Be as somebody else has left it, whom we follow."""
        self.boot()
        for path in self.path.glob("sriov-fast.taken.*"):
            path.unlink()

    def end_at(self, last: int) -> None:
        """Let the range end before its network does."""
        self.conf["ipam"]["ranges"][0][0]["rangeEnd"] = text(last)


@pytest.fixture(scope="module")
def places() -> Iterator[tuple[Path, Path]]:
    root = Path(
        tempfile.mkdtemp(dir="/var/lib" if os.access("/var/lib", os.W_OK) else None, prefix="sriov-fast-")
    )
    run = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="sriov-fast-"))
    yield root, run
    shutil.rmtree(root)
    shutil.rmtree(run)


def text(number: int) -> str:
    return f"10.1.{number >> 8}.{number & 255}"


@pytest.fixture(scope="module")
def small(places: tuple[Path, Path]) -> Store:
    """A node with 100 pods."""
    store = Store(places[0] / "small", places[1], "10.2.0.0/24")
    for _ in range(100):
        store.ours("ADD", store.pod())
    return store


@pytest.fixture(scope="module")
def big(places: tuple[Path, Path]) -> Store:
    """A /16 with 60,000 addresses taken in a row, by somebody else: we know nothing of them."""
    store = Store(places[0] / "big", places[1], "10.1.0.0/16")
    store.path.mkdir(parents=True)
    for number in range(2, TAKEN + 2):
        (store.path / text(number)).write_bytes(b"%064x\r\neth0" % number)
    return store


def report(benchmark: Any, times: list[float], **more: float) -> None:
    """Note the figures of a run of allocations, in microseconds."""
    times = sorted(times)
    found = {"p50 us": times[len(times) // 2], "p99 us": times[int(len(times) * 0.99)], "max us": times[-1]}
    benchmark.extra_info |= {name: round(value, 1) for name, value in (found | more).items()}


def timed(call: Callable[[], object]) -> float:
    begin = perf_counter()
    call()
    return (perf_counter() - begin) * 1e6


def test_a_small_store(benchmark: Any, small: Store) -> None:
    """An ADD and its DEL."""
    benchmark.group = "IPAM"
    if REAL:
        # In turns each finds a store that the other has changed, which costs ours the reading of 100 files.
        times = paired({"in turns": small.pair(small.ours), "exec": small.pair(small.real)}, rounds=30)
        benchmark.extra_info |= {f"{name} us": round(spent, 1) for name, spent in times.items()}
    benchmark(small.pair(small.ours))


def test_a_big_store(benchmark: Any, big: Store) -> None:
    """ADD alone, with 60,000 addresses taken: on and on, from the last one taken."""
    benchmark.group = "IPAM"
    big.point(text(TAKEN + 1))
    times = [timed(lambda: big.ours("ADD", big.pod())) for _ in range(500)]
    report(benchmark, times)
    benchmark.pedantic(lambda: big.ours("ADD", big.pod()), rounds=200)
    assert sorted(times)[len(times) // 2] < LIMIT


def worst(big: Store, before: Callable[[], None], rounds: int = 200) -> list[float]:
    """Return what an ADD takes in the worst place to begin: all 60,000 are in the way. Its DEL follows."""
    times = []
    for _ in range(rounds):
        before()
        big.point(text(1))
        pod = big.pod()
        times.append(timed(lambda pod=pod: big.ours("ADD", pod)))  # type: ignore[misc]
        big.ours("DEL", pod)
    return times


@pytest.mark.parametrize("state", ["nothing known", "known", "known, after a boot"])
def test_a_big_store_from_its_start(benchmark: Any, big: Store, state: str) -> None:
    benchmark.group = "IPAM"
    prepare = {"nothing known": big.forget, "known": lambda: None, "known, after a boot": big.boot}[state]
    big.ours("ADD", big.pod())
    times = worst(big, prepare)
    report(benchmark, times)
    benchmark.pedantic(lambda: big.ours("ADD", big.pod()), setup=lambda: big.point(text(1)), rounds=50)
    assert sorted(times)[len(times) // 2] < LIMIT


@pytest.fixture
def full(places: tuple[Path, Path]) -> Iterator[Store]:
    """A range of 60,003 addresses, of which somebody else has taken 60,000, and left the last three."""
    store = Store(places[0] / "full", places[1], "10.1.0.0/16")
    store.path.mkdir(parents=True)
    for number in range(2, TAKEN + 2):
        (store.path / text(number)).write_bytes(b"%064x\r\neth0" % number)
    store.end_at(TAKEN + 4)
    yield store
    shutil.rmtree(store.path)


def test_a_big_store_that_is_nearly_full(benchmark: Any, full: Store) -> None:
    """Its first search is the one that lists the store; no other does, after a boot neither."""
    benchmark.group = "IPAM"
    first = worst(full, full.forget, 5)
    times = worst(full, lambda: None)
    booted = worst(full, full.boot)
    more = {
        "nothing known us": sorted(first)[2],
        "boot p50 us": sorted(booted)[100],
        "boot p99 us": sorted(booted)[198],
    }
    report(benchmark, times, **more)
    benchmark.pedantic(full.pair(full.ours), setup=lambda: full.point(text(1)), rounds=50)
    assert sorted(times)[len(times) // 2] < LIMIT
    assert sorted(booted)[len(booted) // 2] < LIMIT


def test_a_big_store_ended(benchmark: Any, big: Store) -> None:
    """DEL of a pod that is known, and of one that somebody else attached, for which all is read."""
    benchmark.group = "IPAM"
    pods = [big.pod() for _ in range(100)]
    for pod in pods:
        big.ours("ADD", pod)
    times = [timed(lambda pod=pod: big.ours("DEL", pod)) for pod in pods]  # type: ignore[misc]
    unknown = timed(lambda: big.ours("DEL", f"{2:064x}"))
    report(benchmark, times, **{"unknown us": unknown})
    benchmark.pedantic(lambda: big.pair(big.ours)(), rounds=50)


@pytest.mark.skipif(not REAL, reason="needs the real host-local")
def test_a_big_store_and_the_real_one(benchmark: Any, big: Store) -> None:
    """For comparison: the real one reads all files to see that a pod has no address yet, and to release."""
    benchmark.group = "IPAM"
    big.point(text(TAKEN + 3000))
    benchmark.pedantic(big.pair(big.real), rounds=3)
