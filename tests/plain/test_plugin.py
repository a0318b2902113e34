"""Parts of the verbs that need no kernel: gateways, the configuration, roots, directories, namespaces."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.descriptors import open_files
from sriov_fast.cni.request import Request
from sriov_fast.cni.result import IpConfig, Result
from sriov_fast.common import paths
from sriov_fast.common.errors import ConfigError, DecodeError, SriovError
from sriov_fast.common.paths import Roots
from sriov_fast.common.record import Route
from sriov_fast.plugin import prepare
from sriov_fast.plugin.run import run
from sriov_fast.vf import netns

FOUR = IpConfig(address="10.0.0.2/24", gateway="10.0.0.1")
SECOND = IpConfig(address="10.1.0.2/24", gateway="10.1.0.1")
SIX = IpConfig(address="fd00::2/64", gateway="fd00::1")
BARE = IpConfig(address="10.2.0.2/24")


@pytest.mark.parametrize(
    ("ips", "route", "gateway"),
    [
        ((FOUR, SIX), Route(dst="0.0.0.0/0"), "10.0.0.1"),
        ((FOUR, SIX), Route(dst="::/0"), "fd00::1"),
        ((SIX,), Route(dst="0.0.0.0/0"), ""),
        ((FOUR, SECOND), Route(dst="0.0.0.0/0"), "10.0.0.1"),
        ((BARE, SECOND), Route(dst="0.0.0.0/0"), "10.1.0.1"),
        ((FOUR,), Route(dst="192.0.2.0/24", gw="10.0.0.9"), "10.0.0.9"),
        ((FOUR,), Route(dst="192.0.2.0/24", scope=253), ""),
        ((), Route(dst="192.0.2.0/24"), ""),
    ],
)
def test_gateways(ips: tuple[IpConfig, ...], route: Route, gateway: str) -> None:
    (found,) = prepare._routes(Result(ips=ips, routes=(route,)))
    assert found == route.replace(gw=gateway)


@pytest.fixture
def nowhere(tmp_path: Path) -> Roots:
    """The roots of a machine without files."""
    return Roots(sys=str(tmp_path / "sys"), proc=str(tmp_path / "proc"), run=str(tmp_path / "run"))


def test_version_needs_no_configuration(nowhere: Roots) -> None:
    done = run(Request(command="VERSION"), nowhere)
    assert b'"supportedVersions"' in done.output
    assert (done.afterwards, done.undelivered) == (None, None)


@pytest.mark.parametrize(("stdin", "error"), [(b"", DecodeError), (b"{}", ConfigError)])
def test_the_configuration_comes_first(nowhere: Roots, stdin: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        run(Request(command="ADD", stdin=stdin, container_id="c", ifname="eth0", netns="/nowhere"), nowhere)
    assert not Path(nowhere.run).exists()


def test_roots_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SYS", "PROC", "RUN"):
        monkeypatch.delenv(f"SRIOV_FAST_{name}", raising=False)
    assert paths.from_environment() == Roots(sys="/sys", proc="/proc", run="/run/sriov-fast")
    monkeypatch.setenv("SRIOV_FAST_RUN", "/elsewhere")
    monkeypatch.setenv("SRIOV_FAST_SYS", "")
    assert paths.from_environment() == Roots(run="/elsewhere")


def test_private_directories_keep_what_is_there(tmp_path: Path) -> None:
    run = tmp_path / "a/b"
    run.mkdir(parents=True, mode=0o755)
    run.chmod(0o750)
    assert paths.private_directory(str(run), "vfs") == f"{run}/vfs"
    assert paths.private_directory(str(run), "vfs") == f"{run}/vfs"
    assert [path.stat().st_mode & 0o777 for path in (run, run / "vfs")] == [0o750, 0o700]


def test_a_namespace_that_is_refused_is_closed(tmp_path: Path) -> None:
    path = f"/proc/{os.getpid()}/ns/net"
    home = 1 << 20  # not an open descriptor
    before = open_files()
    with pytest.raises(OSError, match="Bad file descriptor"):
        netns.open_pod(path, -1, home)
    assert open_files() == before
    for wrong in ("/proc/self/ns/mnt", "/etc/hostname", str(tmp_path), str(tmp_path / "nowhere")):
        with pytest.raises(SriovError):
            netns.open_pod(wrong)
    assert open_files() == before
