"""The endpoint of the metrics: its addresses, its errors, and its content."""

from __future__ import annotations

import _thread
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from harness.waiting import wait_for
from sriov_fast.common.errors import ConfigError, FileError
from sriov_fast.common.paths import Roots
from sriov_fast.common.trace import Steps
from sriov_fast.server import sockets
from sriov_fast.server.counts import Counts
from sriov_fast.server.exposition import Endpoint
from sriov_fast.server.histogram import BOUNDS, Histogram
from sriov_fast.server.metrics import Metrics
from sriov_fast.vf import locks

WITHOUT = """\
import sys
sys.modules["prometheus_client"] = None
from sriov_fast.cli import main
sys.exit(main(["serve", "--metrics", "127.0.0.1:0"]))
"""


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    return Roots(sys=str(tmp_path), proc=str(tmp_path), run=str(tmp_path))


@pytest.fixture
def metrics(roots: Roots) -> Metrics:
    return Metrics(roots, Counts(), lambda: 0)


@pytest.mark.parametrize("where", ["", "9809", ":9809", "localhost:", "localhost:http", "127.0.0.1:65536"])
def test_no_address(metrics: Metrics, where: str) -> None:
    with pytest.raises(ConfigError, match="is no address"):
        Endpoint(where, metrics)


def test_an_address_that_is_in_use(metrics: Metrics) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        where = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(FileError, match=f"cannot listen on {where}: Address already in use"):
            Endpoint(where, metrics)


def test_a_socket_that_a_dead_server_left(metrics: Metrics, tmp_path: Path) -> None:
    path = tmp_path / "sub/metrics.sock"
    path.parent.mkdir()
    with closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(str(path))
    with closing(Endpoint(f"unix:{path}", metrics)):
        assert path.is_socket()
    assert not path.exists()


def test_another_file_is_not_replaced(metrics: Metrics, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("kept")
    with pytest.raises(FileError, match="Address already in use"):
        Endpoint(f"unix:{path}", metrics)
    assert path.read_text() == "kept"


def test_ipv6_and_another_path(metrics: Metrics) -> None:
    with closing(Endpoint("[::1]:0", metrics)) as endpoint:
        endpoint.start()
        url = f"http://[::1]:{endpoint.address[1]}"
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/other", timeout=10)


def test_a_silent_client_is_dropped(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent client delays the next scrape at most by the time limit."""
    monkeypatch.setattr("sriov_fast.server.exposition._Handler.timeout", 0.1)
    with closing(Endpoint("127.0.0.1:0", metrics)) as endpoint:
        endpoint.start()
        with (
            closing(socket.create_connection(endpoint.address)),
            urllib.request.urlopen("http://{}:{}/metrics".format(*endpoint.address), timeout=10) as answer,
        ):
            assert answer.status == 200


def test_without_prometheus_client(tmp_path: Path) -> None:
    """The error names the extra that installs the module."""
    env = {"SRIOV_FAST_RUN": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "--metrics needs the module prometheus_client" in done.stderr
    assert "sriov-fast[metrics]" in done.stderr


def test_a_histogram_is_that_of_the_library() -> None:
    """The histogram equals the library's, where a time on a bound belongs to the bucket of that bound."""
    registry = CollectorRegistry()
    library = prometheus_client.Histogram(
        "a_seconds", "Text", ["step", "verb"], buckets=BOUNDS, registry=registry
    )
    ours, others = [Histogram("a_seconds", "Text", "step", "verb") for _ in range(2)]
    # sums of binary fractions do not depend on the order
    for number, seconds in enumerate((0.0, 0.25, 0.28125, 0.125, 2.5, 60.0, 61.0, 2**-20, 7.0 * 2**20)):
        labels = f"step {number % 2}", "ADD"
        library.labels(*labels).observe(seconds)
        (others if number in (1, 4, 5, 7) else ours).observe(seconds, *labels)
    found, wanted = (
        list(text_string_to_metric_families(text))
        for text in (ours.text([others.plain()]), generate_latest(registry).decode())
    )
    created = [family.name for family in wanted if family.name.endswith("_created")]
    assert found == [family for family in wanted if family.name not in created]


def test_closed_before_it_serves(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that is closed before its thread runs does not fail."""
    monkeypatch.setattr(_thread, "start_new_thread", lambda work, words: work(*words))
    endpoint = Endpoint("127.0.0.1:0", metrics)
    endpoint.close()
    endpoint.start()


@pytest.mark.parametrize(
    ("family", "where"), [(socket.AF_INET, "127.0.0.1:0"), (socket.AF_UNIX, "unix:{}/metrics.sock")]
)
def test_its_thread_ends_when_it_is_closed(metrics: Metrics, tmp_path: Path, family: int, where: str) -> None:
    """The endpoint's thread ends with its socket, and does not poll the closed descriptor's number."""
    before = threads()
    with closing(Endpoint(where.format(tmp_path), metrics)) as endpoint:
        endpoint.start()
        with socket.socket(family) as client:
            client.connect(endpoint.address)
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.0 200"
    wait_for(lambda: threads() <= before, "the thread still runs", 10)


def threads() -> set[str]:
    return set(os.listdir("/proc/self/task"))


def test_workers_are_counted(roots: Roots) -> None:
    """The metrics add the counts of the workers; a worker that does not reply adds none."""
    ours, theirs = Counts(), Counts()
    for counts, code in ((ours, 0), (theirs, 0), (theirs, 11)):
        counts.served("ADD", code, b'{"code": 11}', Steps("", "resident"))
    plain = json.loads(json.dumps(theirs.plain() | {"waits": {"number": 2, "seconds": 0.5, "timeouts": 1}}))
    workers: list[Any] = [
        SimpleNamespace(counts=lambda: plain, running=lambda: 2),
        SimpleNamespace(counts=dict, running=lambda: 0),
    ]
    text = Metrics(roots, ours, lambda: 1, (), workers).render().decode()
    assert 'sriov_fast_requests_total{code="0",verb="ADD"} 2.0' in text
    assert 'sriov_fast_requests_total{code="11",verb="ADD"} 1.0' in text
    assert 'sriov_fast_request_seconds_count{verb="ADD"} 3' in text
    assert "sriov_fast_requests_running 3.0" in text
    assert f"sriov_fast_lock_waits_total {locks.waits.number + 2.0}" in text


def test_connections_that_no_thread_has_accepted(roots: Roots, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as opened:
        path = f"{roots.run}/sriov.sock"
        listener = opened.enter_context(sockets.listen_at(path))
        for _ in range(3):
            opened.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
        text = Metrics(roots, Counts(), lambda: 0, [listener]).render().decode()
        assert "sriov_fast_requests_queued 3.0" in text
        listener.accept()[0].close()
        assert sockets.queued(listener) == 2
        monkeypatch.setattr(sockets, "_BY_FAMILY", 99)  # an unknown message for the kernel
        with pytest.raises(OSError, match="Invalid argument"):
            sockets.queued(listener)
        assert b"sriov_fast_requests_queued" not in Metrics(roots, Counts(), lambda: 0, [listener]).render()
