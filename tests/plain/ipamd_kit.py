"""An etcd process, a clock, configurations and requests for the tests of the address service."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self

from sriov_fast.ipamd.config import Config
from sriov_fast.ipamd.model import Ask, parse
from sriov_fast.ipamd.service import Service, open_service

ETCD = "/usr/bin/etcd"
HOST = "10.9.0.1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Etcd:
    """An etcd process, which can be killed and started again with the same data."""

    def __init__(self, *options: str, scheme: str = "http", sync: bool = False) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="etcd-")
        self.root = Path(self._directory.name)
        self.address = f"127.0.0.1:{free_port()}"
        peer = f"http://127.0.0.1:{free_port()}"
        self.url = f"etcd://{self.address}"
        url = f"{scheme}://{self.address}"
        self._health = f"{url}/health"
        self._command = [ETCD, "--data-dir", str(self.root / "data"), "--listen-peer-urls", peer]
        self._command += ["--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"]
        self._command += ["--listen-client-urls", url, "--advertise-client-urls", url, *options]
        self._command += [] if sync else ["--unsafe-no-fsync"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        assert Path(ETCD).exists(), f"{ETCD} is missing: install etcd-server, as tools/host.sh does"
        with open(self.root / "log", "ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        host, port = self.address.split(":")
        for _ in range(300):
            if self._process.poll() is not None:
                break
            if self._answers(host, int(port)):
                return self
            time.sleep(0.05)
        raise AssertionError((self.root / "log").read_text()[-2000:])

    def _answers(self, host: str, port: int) -> bool:
        try:
            if self._health.startswith("https"):
                socket.create_connection((host, port), 1).close()
                return True
            with urllib.request.urlopen(self._health, timeout=1) as answer:
                return b"true" in answer.read()
        except OSError:
            return False

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        self.kill()
        self._directory.cleanup()


class Clock:
    """A clock that stands still until a test changes ``now``."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def config(subnet: str = "10.1.0.0/24", *, grace: int = 300, **more: Any) -> dict[str, Any]:
    """Return the configuration of a network n with a pool a for all hosts.

    ``pool`` adds keys to the pool. ``assignments`` are entries of network n. Each other argument replaces a
    section.
    """
    pool = {"name": "a", "network": "n", "subnet": subnet, **more.pop("pool", {})}
    hosts = {"network": "n", "hosts": ["0.0.0.0/0", "::/0"], "pools": ["a"]}
    document = {"networks": [{"name": "n", "grace": grace}], "pools": [pool], "hosts": [hosts]}
    fixed = [{"network": "n", **it} for it in more.pop("assignments", ())]
    return {**document, "assignments": fixed, **more}


def made(document: dict[str, Any]) -> Config:
    return parse(Config, document)


async def configure(service: Service, document: dict[str, Any]) -> None:
    await service.configure(made(document), None)


def ask(container: object, pod: str | None = None, *, host: str = HOST, **more: str) -> Ask:
    name = f"c{container}"
    pod_id = f"ns/{name}" if pod is None else pod
    return Ask(
        network=more.pop("network", "n"),
        container_id=name,
        ifname=more.pop("ifname", "eth0"),
        pod_id=pod_id,
        host_ip=host,
    )


@contextlib.asynccontextmanager
async def opened(url: str, clock: Callable[[], float] = time.time) -> AsyncIterator[Service]:
    """Open a service, and close it at the end of the context."""
    service = await open_service(url, clock=clock)
    try:
        yield service
    finally:
        await service.close()


async def address(service: Service, *args: Any, **more: Any) -> str:
    """Request an address for a new or known container; return it without its prefix length."""
    allocation, _ = await service.allocate(ask(*args, **more))
    return allocation.ips[0].address.partition("/")[0]


async def release(service: Service, container: object, *, ifname: str = "eth0") -> bool:
    return await service.release(("n", f"c{container}", ifname), HOST)
