"""The address service killed with -9 under load, over SQLite: nothing is lost, and nothing doubled."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

from ipamd_kit import address, config, served

from sriov_fast.ipamd.service import Service

REPLICA = Path(__file__).with_name("ipamd_replica.py")
TIMES = 2


def run_and_kill(url: str, name: str, seconds: float) -> list[list[str]]:
    """Let 64 clients work for a while, kill the process, and return what it had acknowledged."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(REPLICA), url, name, "64", "100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        first = b"".join(process.stdout.readline() for _ in range(65))
        killer = subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -9 {process.pid}"])
        rest = process.stdout.read()
        killer.wait()
    assert process.returncode == -signal.SIGKILL
    return [
        line.decode().split() for line in (first + rest).splitlines(keepends=True) if line.endswith(b"\n")
    ]


def test_acknowledged_is_there_after_a_kill(tmp_path: Path) -> None:
    """Killed at several moments, on the same file, under 64 clients that take and free."""
    path = tmp_path / "ipam.db"
    url = f"sqlite://{path}"
    served(url, lambda service: service.ready(), config("10.0.0.0/12"))
    held: dict[str, str] = {}
    unsure: set[str] = set()
    for turn in range(TIMES):
        lines = run_and_kill(url, f"r{turn}x", random.uniform(0.05, 0.6))
        for verb, name, *found in lines:
            if verb == "took":
                assert name not in held
                held[name] = found[0]
            elif verb == "freeing":
                unsure.add(name)
            else:
                unsure.discard(name)
                del held[name]

        async def check(service: Service, turn: int = turn) -> None:
            now = {it.container_id: it.ips[0].address for it in await service.allocations("n")}
            assert len(set(now.values())) == len(now), "an address is held twice"
            sure = {name: address for name, address in held.items() if name not in unsure}
            assert sure.items() <= now.items(), "an acknowledged allocation is lost"
            asked = now.keys() - held.keys()
            assert len(asked) <= 64 * (turn + 1), "more is held than was ever asked for"
            assert sum(use.used for use in await service.usage()) == len(now)
            taken = {it.partition("/")[0] for it in now.values()}
            for at in range(200):
                new = await address(service, f"after{turn}-{at}")
                assert new not in taken
                taken.add(new)
            held.update({it.container_id: it.ips[0].address for it in await service.allocations("n")})
            for name in unsure - now.keys():
                held.pop(name, None)
            unsure.clear()

        served(url, check)
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_two_processes_on_one_file(tmp_path: Path) -> None:
    """Two services on the same SQLite file do not step on each other."""
    url = f"sqlite://{tmp_path}/ipam.db"
    served(url, lambda service: service.ready(), config("10.1.0.0/20"))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    began = [
        subprocess.Popen(
            [sys.executable, str(REPLICA), url, name, "16", "20"], stdout=subprocess.PIPE, env=env
        )
        for name in ("a", "b")
    ]
    outputs = [process.communicate(timeout=120)[0] for process in began]
    assert [process.returncode for process in began] == [0, 0]
    took = [
        line.split() for output in outputs for line in output.decode().splitlines() if line.startswith("took")
    ]
    assert len(took) == 2 * 16 * 20

    async def check(service: Service) -> None:
        held = [it.ips[0].address for it in await service.allocations("n")]
        assert len(held) == len(set(held)) == 2 * 16 * 10

    served(url, check)
