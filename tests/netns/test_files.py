"""A network configuration that root did not write: the files that it may make the plugin touch."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from harness.veth import Node
from sriov_fast.common import files

RULES = "others than root may write to it"


def own(node: Node, **more: Any) -> dict[str, Any]:
    """Return a configuration with the built-in host-local."""
    return node.conf(ipam=node.host_local(delegate=False, **more))


def planted(node: Node) -> Path:
    """Return a file of root's that root allows no configuration to name."""
    path = node.root.parent / f"profile-{node.id}"
    path.write_text("as it was\n")
    return path


@pytest.mark.modes("resident")
def test_a_log_file_elsewhere_is_not_written(node: Node) -> None:
    """``logFile`` cannot name a file outside root's rules; unknown keys are escaped in the log."""
    pod, profile = node.pod(), planted(node)
    conf = node.conf(logFile=str(profile), **{"$(id)": 1, "x" * 500: 2})
    done = node.run("ADD", conf, pod)
    assert done.status == 0, done
    assert profile.read_text() == "as it was\n"
    assert "root does not allow a network configuration to name this path" in done.stderr
    assert r"unknown key \"\x24(id)\" is ignored" in done.stderr
    assert "x" * 61 not in done.stderr
    node.delete(conf, pod)


def test_a_log_file_is_not_reached_through_a_link(node: Node) -> None:
    """``logFile`` cannot leave the directory of logs by a symbolic link in any component."""
    pod, profile, logs = node.pod(), planted(node), node.root / "logs"
    logs.mkdir()
    node.allow(logFile=[logs])
    (logs / "away").symlink_to(profile.parent)
    (logs / "log").symlink_to(profile)
    for name in (f"away/{profile.name}", "log", f"../../{profile.name}"):
        done = node.run("ADD", node.conf(logFile=f"{logs}/{name}"), pod)
        assert done.status == 0, done
        assert "the log file cannot be written" in done.stderr
        assert profile.read_text() == "as it was\n"
        node.delete(node.conf(), pod)


def test_addresses_are_kept_where_root_allows(node: Node) -> None:
    """``dataDir`` cannot name a directory outside root's rules, also not by a symbolic link."""
    pod, profile = node.pod(), planted(node)
    empty = node.snapshot()
    elsewhere = node.root.parent / f"planted-{node.id}"
    (elsewhere / "net1").mkdir(parents=True)
    (elsewhere / "net1" / "last_reserved_ip.0").symlink_to(profile)
    (node.root / "linked").symlink_to(elsewhere)
    for directory in (elsewhere, node.root / "linked", "relative", "/"):
        conf = own(node, dataDir=str(directory))
        assert "ipam.dataDir" in node.refused(7, "ADD", conf, pod)
        assert node.snapshot() == empty
        assert "nothing was attached" in node.delete(conf, pod).stderr
    assert profile.read_text() == "as it was\n"


def test_no_link_in_a_store_is_followed(node: Node) -> None:
    """An ADD fails if one of the store's own files is a symbolic link, and does not write through it."""
    pod, profile = node.pod(), planted(node)
    store = node.root / "ipam" / "net1"
    store.mkdir(parents=True)
    for name in ("lock", "last_reserved_ip.0"):
        (store / name).symlink_to(profile)
        node.refused(5, "ADD", own(node), pod)
        assert profile.read_text() == "as it was\n"
        (store / name).unlink()
    node.add(own(node), pod)
    node.delete(own(node), pod)


def test_what_is_attached_stays_until_root_allows_it(node: Node) -> None:
    """A refused DEL keeps record and lease; it succeeds when root allows the path again."""
    pod = node.pod()
    node.add(own(node), pod)
    node.allow(dataDir=["/nowhere"])
    node.refused(7, "DEL", own(node), pod)
    assert (len(node.records()), node.leases()) == (1, ["10.77.0.2"])
    node.allow()
    node.delete(own(node), pod)
    assert (node.records(), node.leases()) == ([], [])


def test_resolv_conf_is_none_of_roots_other_files(node: Node) -> None:
    """``resolvConf`` reads no other file, and its errors do not reveal which files exist."""
    pod, profile = node.pod(), planted(node)
    node.allow(resolvConf=[node.root / "resolv.conf"])
    said = {
        node.refused(7, "ADD", own(node, resolvConf=str(path)), pod).replace(str(path), "PATH")
        for path in (profile, profile.with_name("missing"))
    }
    assert len(said) == 1
    (node.root / "stub").write_text("nameserver 10.0.0.53\n")
    (node.root / "resolv.conf").symlink_to("stub")  # /etc/resolv.conf is often a symbolic link
    conf = own(node, resolvConf=f"{node.root}/resolv.conf")
    assert node.add(conf, pod)["dns"] == {"nameservers": ["10.0.0.53"]}
    node.delete(conf, pod)


@pytest.mark.modes("resident")
@pytest.mark.parametrize("what", ["resolvConf", "lock", "last", "trace", "log"])
def test_a_fifo_holds_nothing_up(node: Node, what: str) -> None:
    """A FIFO in the place of a file does not block the call, its locks or a thread of the server."""
    pod, fifo = node.pod(), node.root / "fifo"
    conf = own(node)
    store = node.root / "ipam" / "net1"
    store.mkdir(parents=True)
    fifo = {"lock": store / "lock", "last": store / "last_reserved_ip.0"}.get(what, fifo)
    os.mkfifo(fifo)
    env = {"SRIOV_FAST_TRACE": str(fifo)} if what == "trace" else {}
    if what == "resolvConf":
        conf = own(node, resolvConf=str(fifo))
    elif what == "log":
        conf["logFile"] = str(fifo)
    began = time.monotonic()
    process = node.start("ADD", conf, pod, env=env)
    try:
        out, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert time.monotonic() - began < 20
    if process.returncode:
        assert json.loads(out)["code"] in (5, 7), out
    assert (process.returncode == 0) == (what in ("lock", "trace", "log"))
    node.delete(own(node), pod)
    assert node.records() == []


@pytest.mark.modes("resident")
def test_an_error_is_an_error_whatever_the_exit_status(node: Node) -> None:
    """An IPAM plugin's error object is an error, also with exit status 0."""
    pod = node.pod()
    empty = node.snapshot()
    node.delegate("odd", """[ "$CNI_COMMAND" = ADD ] && echo '{"code": 7, "msg": "no pool"}'""")
    conf = node.conf(ipam={"type": "odd"})
    assert "no pool" in node.refused(7, "ADD", conf, pod)
    assert node.snapshot() == empty
    node.delete(conf, pod)


CODES = {"4294967295": 4294967295}  # the largest code that runtimes can read; 102 replaces the others
CODES |= dict.fromkeys(("18446744073709551616", "4294967296", "-7", "0", "true", '"7"', "7.5"), 102)


@pytest.mark.parametrize("code", CODES)
def test_codes_and_texts_of_a_delegate_are_bounded(node: Node, code: str) -> None:
    """Codes of an IPAM plugin are bounded to 32 bits, as runtimes read them, and its texts in length."""
    long = "m" * 100_000
    answer = f'{{"code": {code}, "msg": "{long}", "details": "{long}"}}'
    node.delegate("odd", f"[ \"$CNI_COMMAND\" = ADD ] || exit 0\nprintf '%s' '{answer}'\nexit 3")
    said = node.refused(CODES[code], "ADD", node.conf(ipam={"type": "odd"}), node.pod())
    assert len(said) < 3000
    assert CODES[code] == 102 or len(said) > 1000


@pytest.mark.modes("resident")
def test_the_server_keeps_its_own_rules(node: Node) -> None:
    """The server takes no directory from its client's environment."""
    pod = node.pod()
    theirs = node.root / "theirs"
    theirs.mkdir()
    (theirs / files.NAME).write_text('[allow]\ndataDir = ["/"]\n')
    conf = own(node, dataDir=str(node.root.parent / "elsewhere"))
    env = {"SRIOV_FAST_ETC": str(theirs), "SRIOV_FAST_STATE": str(theirs)}
    assert "ipam.dataDir" in node.refused(7, "ADD", conf, pod, env=env)
    assert sorted(os.listdir(theirs)) == [files.NAME]


@pytest.mark.modes("resident")
def test_rules_that_others_may_write_are_refused(node: Node) -> None:
    """Rules count only if root alone can write the file, and if its content is valid."""
    pod, rules = node.pod(), node.root / "etc" / files.NAME
    rules.chmod(0o666)
    assert RULES in node.refused(5, "ADD", own(node), pod)
    rules.chmod(0o644)
    os.chown(rules, 65534, 65534)
    assert RULES in node.refused(5, "ADD", own(node), pod)
    os.chown(rules, 0, 0)
    for content in ("[allow", "allow = 1", "[allow]\nlogfile = []", '[allow]\nca = ["x"]', "more = 1"):
        rules.write_text(content)
        assert str(rules) in node.refused(5, "ADD", own(node), pod)
    done = node.run("ADD", node.conf(logFile=f"{node.root}/log"), pod)  # only a warning
    assert (done.status, str(rules) in done.stderr) == (0, True), done
    node.delete(node.conf(), pod)
