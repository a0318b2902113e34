"""Encoding of the two messages of a typical attach: the compiled module compared with pyroute2.

Run it with ``pytest benches/bench_encode.py``. The ratio of both, from the same run, is in ``extra_info`` of
the JSON. No time is asserted.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from sriov_fast import _nl
from sriov_fast.common.record import VfSettings
from sriov_fast.kernel import _nl_py

if TYPE_CHECKING:
    from types import ModuleType

    from pytest_benchmark.fixture import BenchmarkFixture

SETTINGS = VfSettings(mac="02:00:00:00:00:0a", vlan=100, qos=2, spoofchk=True, trust=False)


def attach(backend: ModuleType) -> bytes:
    """Encode the VF's settings on its PF, then move, name, MTU and up."""
    batch = backend.Batch()
    batch.set_vf(4, 3, SETTINGS)
    batch.set_link(9, netns_fd=7, name="eth0", mtu=1500, up=True)
    data: bytes = batch.tobytes()
    return data


def median(backend: ModuleType, *, rounds: int = 7, times: int = 200) -> float:
    """Return the seconds of one encoding, the median of ``rounds`` rounds."""
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(times):
            attach(backend)
        taken.append((time.perf_counter() - start) / times)
    return sorted(taken)[rounds // 2]


@pytest.fixture(scope="module")
def ratio() -> float:
    """Return the ratio of the plain implementation's time to the compiled module's."""
    return median(_nl_py) / median(_nl)


@pytest.mark.benchmark(group="encode set_vf + set_link")
@pytest.mark.parametrize("backend", [pytest.param(_nl, id="cython"), pytest.param(_nl_py, id="pyroute2")])
def test_encode(benchmark: BenchmarkFixture, backend: ModuleType, ratio: float) -> None:
    assert attach(_nl) == attach(_nl_py)
    benchmark.extra_info["pyroute2 / cython"] = round(ratio, 1)
    benchmark(attach, backend)
