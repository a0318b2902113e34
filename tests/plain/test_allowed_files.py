"""Root's rules for the files that a network configuration names: logs, secrets, certificates."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from txipam_service import AUTHORITY, Client, FakeService

from sriov_fast.common import files
from sriov_fast.common.errors import ConfigError, FileError, RefusedError
from sriov_fast.common.log import Logger
from sriov_fast.ipam.txipam.pool import pool

Allows = Callable[..., Path]
MIB = 1 << 20


@pytest.fixture
def no_rules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SRIOV_FAST_ETC", str(tmp_path / "none"))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[FakeService]:
    (tmp_path / "secret").mkdir()
    for name in ("secret/ca.pem", "ca.pem"):
        AUTHORITY.cert_pem.write_to_path(str(tmp_path / name))
    (tmp_path / "secret/token").write_text("of-this-node\n")
    with closing(FakeService()) as made:
        yield made
    pool.clear()


@pytest.fixture
def node(service: FakeService, tmp_path: Path) -> Client:
    return Client(tmp_path, remote=service.url, timeout=5, retries=0)


# --- the log


def test_a_line_of_the_log_runs_no_command(tmp_path: Path) -> None:
    """A log line runs no command even if a shell sources the log file."""
    log, canary = tmp_path / "log", tmp_path / "canary"
    command = f"touch {canary}"
    evil = [
        f"$({command})",
        f"`{command}`",
        f";{command};",
        f"&{command}&",
        f'" {command} "',
        f"x\n{command}\n",
    ]
    evil += [f"'$({command})'", f"|{command}", f"<({command})"]
    logger = Logger(file=str(log), streams=())
    for text in evil:
        logger.warning(text, why=text, file=[text])
    logger.close()
    assert len(log.read_text().splitlines()) == len(evil)
    subprocess.run(["bash", "-c", f". {log}"], check=False, capture_output=True)
    assert not canary.exists()


def test_a_line_of_the_log_is_bounded(tmp_path: Path) -> None:
    Logger(file=str(tmp_path / "log"), streams=()).warning("m" * MIB, why="w" * MIB)
    assert (tmp_path / "log").stat().st_size < 5000


def test_a_log_file_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGEST_LOG", 1000)
    for number in range(40):
        logger = Logger(file=str(tmp_path / "log"), streams=())
        logger.info("a line of the log", number=number)
        logger.close()
    old, new = (tmp_path / name for name in ("log.1", "log"))
    assert sorted(os.listdir(tmp_path)) == ["log", "log.1"]
    assert 1000 <= old.stat().st_size < 1200
    assert "number=39" in new.read_text()
    assert old.stat().st_mode & 0o777 == 0o600


def test_the_directory_of_logs_is_made(tmp_path: Path, allows: Allows) -> None:
    """The first log line creates the directory of the log file, for root alone."""
    allows(tmp_path / "logs")
    Logger(file=str(tmp_path / "logs/net.log"), streams=()).info("first")
    assert (tmp_path / "logs").stat().st_mode & 0o777 == 0o700
    assert "first" in (tmp_path / "logs/net.log").read_text()


# --- files that are read, and tokens that are sent


@pytest.mark.usefixtures("no_rules")
def test_the_usual_files_need_no_rules() -> None:
    """The paths of the manuals and of distributions are allowed without rules; other files are not."""
    usual = {
        "ipam.ca": [
            "/etc/pki/ca-trust/source/anchors/ca.crt",
            "/etc/ssl/certs/x.pem",
            "/etc/sriov-fast/ca/ca.crt",
        ],
        "ipam.tokenFile": ["/etc/sriov-fast/node.token"],
        "ipam.dataDir": ["/var/lib/cni/networks", "/run/cni/x", "/var/run/cni"],
        "ipam.resolvConf": ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"],
        "logFile": ["/var/log/sriov-fast/x.log"],
    }
    for where, paths in usual.items():
        for path in paths:
            files.demand(where, path)
        for path in (
            "/etc/shadow",
            "/root/.ssh/id_rsa",
            f"{paths[0]}/../../../../../etc/shadow",
            "x",
            "/proc/1/environ",
        ):
            with pytest.raises(RefusedError):
                files.demand(where, path)


def test_a_token_goes_to_no_other_server(node: Client, service: FakeService, tmp_path: Path) -> None:
    token = str(tmp_path / "secret/token")
    for ca in (None, str(tmp_path / "ca.pem")):  # the system's CAs; a CA outside the token's directory
        for verb in ("ADD", "DEL", "STATUS"):
            with pytest.raises(RefusedError, match="does not allow this token to be sent"):
                node.run(verb, tokenFile=token, ca=ca)
    assert service.seen == []
    assert not (tmp_path / "state").exists()
    node.run("ADD", tokenFile=token, ca=str(tmp_path / "secret/ca.pem"))
    assert service.seen[-1].fields["authorization"] == "Bearer of-this-node"


def test_root_says_where_a_token_may_go(
    node: Client, service: FakeService, tmp_path: Path, allows: Allows
) -> None:
    """A token with an entry in [tokens] is sent to the remotes of the entry and to no others."""
    token, ca = str(tmp_path / "secret/token"), str(tmp_path / "ca.pem")
    allows(tmp_path, f'"{token}" = ["https://ipam.example"]')
    for given in (ca, str(tmp_path / "secret/ca.pem")):
        with pytest.raises(RefusedError, match="does not allow this token"):
            node.run("ADD", tokenFile=token, ca=given)
    allows(tmp_path, f'"{token}" = ["{service.url}"]')
    with pytest.raises(RefusedError, match=r"to https://other\.example"):
        node.run("ADD", tokenFile=token, ca=ca, remote=[service.url, "https://other.example"])
    assert service.seen == []
    node.run("ADD", tokenFile=token, ca=ca)
    assert len(service.seen) == 1


@pytest.mark.parametrize("key", ["ca", "cert", "key", "tokenFile"])
def test_errors_do_not_tell_which_files_exist(node: Client, tmp_path: Path, key: str) -> None:
    said = set()
    for path in ("/etc/shadow", "/etc/none", "/root", "/dev/zero"):
        given = {"cert": str(tmp_path / "ca.pem")} if key == "key" else {}
        with pytest.raises(RefusedError) as caught:
            node.run("ADD", **given, **{key: path})
        said.add(f"{caught.value.msg} {caught.value.details}".replace(path, "PATH"))
    assert len(said) == 1


def test_links_stay_in_what_root_allows(tmp_path: Path, allows: Allows) -> None:
    """The target of a symbolic link must be allowed as well; distributions link their CA files."""
    certs, shared = tmp_path / "certs", tmp_path / "shared"
    certs.mkdir()
    shared.mkdir()
    (shared / "x.crt").write_text("x")
    (certs / "x.pem").symlink_to("../shared/x.crt")
    etc = allows(certs)
    with pytest.raises(RefusedError):
        files.read("ipam.ca", f"{certs}/x.pem", 10)
    (etc / files.NAME).write_text(f'[allow]\nca = ["{certs}", "{shared}"]\n')
    assert files.read("ipam.ca", f"{certs}/x.pem", 10) == b"x"


@pytest.mark.skipif(os.geteuid() != 0, reason="files of others are made by root")
@pytest.mark.parametrize("change", ["mode", "owner", "listed"])
def test_directories_that_others_may_change(tmp_path: Path, change: str, allows: Allows) -> None:
    """A file is refused if others than root may change a directory of its path, and so replace the file."""
    top, inner = tmp_path / "top", tmp_path / "top/inner"
    inner.mkdir(parents=True)
    (inner / "file").write_text("x")
    allows(top)
    assert files.read("ipam.ca", f"{inner}/file", 10) == b"x"
    if change == "mode":
        inner.chmod(0o777)
    elif change == "owner":
        os.chown(inner, 65534, 65534)
    else:
        top.chmod(0o1777)
    with pytest.raises(ConfigError, match="others than root may change the directory"):
        files.read("ipam.ca", f"{inner}/file", 10)
    with pytest.raises(ConfigError, match="others than root may change the directory"):
        files.directory("ipam.dataDir", str(inner), "net")


# --- files that are not regular or cannot be opened


@pytest.mark.parametrize("key", ["ca", "cert", "key", "tokenFile"])
@pytest.mark.parametrize("kind", ["fifo", "directory", "large"])
def test_only_regular_files_are_read(node: Client, tmp_path: Path, key: str, kind: str) -> None:
    path = tmp_path / "secret" / "odd"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(files.LARGEST + 1)
    given = {"ca": str(tmp_path / "secret/ca.pem")}
    if key == "key":
        given["cert"] = str(tmp_path / "secret/ca.pem")
    with pytest.raises(ConfigError, match=r"not a regular file|larger than"):
        node.run("ADD", **given | {key: str(path)})


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ENOMEM])
def test_a_file_that_nobody_could_look_at(
    tmp_path: Path, allows: Allows, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """An error of open(2) such as EMFILE is an I/O failure (code 5), not a fault of the configuration."""
    allows(tmp_path)
    (tmp_path / "file").write_text("x")
    opening = os.open

    def fails(path: Any, *words: Any, **more: Any) -> int:
        if path == "file":
            raise OSError(number, os.strerror(number))
        return opening(path, *words, **more)

    monkeypatch.setattr(os, "open", fails)
    with pytest.raises(FileError) as caught:
        files.read("ipam.ca", f"{tmp_path}/file", 10)
    assert (caught.value.code, caught.value.errno) == (5, number)


# --- the file of root's rules


def test_no_rules_are_the_defaults_and_unreadable_ones_are_an_error(tmp_path: Path, allows: Allows) -> None:
    """The defaults apply only if the file does not exist."""
    assert files.rules().allow == files.DEFAULTS
    etc = allows(tmp_path)
    assert files.rules().allow["ca"] == (str(tmp_path),)
    (etc / files.NAME).unlink()
    os.mkfifo(etc / files.NAME)
    with pytest.raises(FileError, match="not a regular file"):
        files.rules()
    shutil.rmtree(etc)
    (tmp_path / "etc").symlink_to("etc")  # a loop (ELOOP)
    with pytest.raises(FileError):
        files.rules()
