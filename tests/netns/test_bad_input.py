"""Bad input to the real process: one error object, exit status 1, and no side effects."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from harness.veth import KINDS, Node

pytestmark = pytest.mark.modes("process", "resident")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, mode: str) -> Iterator[Node]:
    """One node for all tests of the module; each test must leave the node unchanged."""
    node = KINDS[mode](tmp_path_factory.mktemp("node"), vfs=2)
    node.pod()
    node.other_ipam()
    yield node
    node.close()


@pytest.fixture
def untouched(shared: Node) -> Iterator[Node]:
    before = shared.snapshot()
    yield shared
    assert shared.snapshot() == before
    assert shared.calls() == []
    assert shared.touched() == []


# Errors that need the machine, and a sample of the others; tests/plain/test_cni_*.py cover all of those.
ENVIRONMENTS: list[tuple[dict[str, str], str]] = [
    ({"CNI_COMMAND": ""}, "CNI_COMMAND is missing"),
    ({"CNI_CONTAINERID": "../../etc"}, "'../../etc'"),
    ({"CNI_NETNS": ""}, "CNI_NETNS"),
    ({"CNI_NETNS": "relative"}, "'relative'"),
    ({"CNI_NETNS": "/run/netns/no-such"}, "'/run/netns/no-such'"),
    ({"CNI_NETNS": "/etc/passwd"}, "'/etc/passwd': is no namespace"),
    ({"CNI_NETNS": "/proc/self/ns/mnt"}, "is a namespace of another kind"),
    ({"CNI_NETNS": "/proc/self/ns/net"}, "is the host's own namespace"),
    ({"CNI_IFNAME": "sixteen-letters-"}, "longer than 15 bytes"),
    ({"CNI_IFNAME": "eth%d"}, "'eth%d'"),
    ({"CNI_ARGS": "Foo=1"}, "unknown key 'Foo'"),
    ({"CNI_ARGS": "VF=1;vf=2"}, "vf='2': the key was given before, with the value '1'"),
    # bytes that neither the reply nor the record can represent
    ({"CNI_IFNAME": "e\udcff"}, r"CNI_IFNAME='e\udcff': holds bytes that are no UTF-8"),
    ({"CNI_NETNS": "/run/\udcff"}, r"CNI_NETNS='/run/\udcff' holds bytes that are no UTF-8"),
    ({"CNI_ARGS": "PodID=\udcff"}, r"CNI_ARGS='PodID=\udcff' holds bytes that are no UTF-8"),
    ({"CNI_PATH": "/bin\udcff"}, r"CNI_PATH='/bin\udcff' holds bytes that are no UTF-8"),
]

ARGS: list[tuple[str, str]] = [
    ("VF=x", "VF"),
    ("MAC=01:00:00:00:00:01", "multicast"),
    ("CORES=a", "CORES"),
    ("HostIP=10.0.0", "HostIP"),
]

CONFIGURATIONS: list[tuple[dict[str, Any], str]] = [
    ({"name": None}, "name is missing"),
    ({"master": "pf7"}, "pf7"),
    ({"master": "lo"}, "lo"),
    ({"vf": 2}, "vf 2: pf0 has no such VF"),
    ({"vlan": 4095}, "vlan = 4095"),
    ({"deviceID": "0000:01:10"}, "0000:01:10"),
    ({"deviceID": "0000:99:10.0"}, "0000:99:10.0"),
    ({"deviceID": "0000:01:00.0"}, "0000:01:00.0"),
    ({"mtu": 1 << 20}, "mtu"),
    ({"cores": [99]}, "core 99 is not online"),
    ({"logFile": "relative.log"}, "relative.log"),
    ({"ipam": {"type": "../evil"}}, "../evil"),
    ({"ipam": {"type": "host-local", "delegate": "no"}}, "delegate"),
]

STDIN: list[tuple[bytes, str]] = [
    (b"", "empty"),
    (b'{"cniVersion": "1.0.0", "name": "net1"', ""),
    (b"[]", "not a JSON object"),
    (b"\xff\xfe", "UTF-8"),
    (b'{"x":' * 200 + b"1" + b"}" * 200, "nested deeper"),
    (b'{"name": "' + b"x" * (10 << 20) + b'"}', "larger than"),
    (b"x" * (20 << 20), "larger than"),
    (b'{"cniVersion": 1}', "cniVersion"),
]


def short(value: object) -> str:
    return str(value)[:40]


@pytest.mark.parametrize(("env", "words"), ENVIRONMENTS, ids=short)
def test_environment(untouched: Node, env: dict[str, str], words: str) -> None:
    conf = untouched.conf(ipam={"type": "txipam", "delegate": True})
    assert words in untouched.refused(4, "ADD", conf, untouched.pods[0], env=env)


@pytest.mark.parametrize(("args", "words"), ARGS, ids=short)
def test_cni_args(untouched: Node, args: str, words: str) -> None:
    conf = untouched.conf(ipam={"type": "txipam", "delegate": True})
    assert words in untouched.refused(7, "ADD", conf, untouched.pods[0], args=args)


@pytest.mark.parametrize(("more", "words"), CONFIGURATIONS, ids=short)
def test_configuration(untouched: Node, more: dict[str, Any], words: str) -> None:
    # static cannot choose the VF, so it runs after the VF is chosen
    conf = untouched.conf(**{"ipam": {"type": "static"}} | more)
    msg, _, details = untouched.refused(7, "ADD", conf, untouched.pods[0]).partition("\n")
    assert words in msg
    assert details
    # checks of the PF run under a lock, and the directory of locks may remain
    for name in set(untouched.touched()) & {"locks", "vfs"}:
        (untouched.run_dir / name).rmdir()
    with contextlib.suppress(OSError):
        untouched.run_dir.rmdir()


@pytest.mark.parametrize(("stdin", "words"), STDIN, ids=short)
def test_stdin(untouched: Node, stdin: bytes, words: str) -> None:
    assert words in untouched.refused(6, "ADD", stdin, untouched.pods[0])


@pytest.mark.parametrize("command", ["DEL", "CHECK", "STATUS", "GC"])
def test_no_json_for_any_verb(untouched: Node, command: str) -> None:
    assert "cannot be decoded" in untouched.refused(6, command, b"{", untouched.pods[0])


def test_an_error_speaks_the_configurations_version(node: Node) -> None:
    pod = node.pod()
    for version, spoken in ((None, "0.1.0"), ("0.3.1", "0.3.1"), ("9.9", "1.1.0")):
        done = node.run("ADD", node.conf(cniVersion=version, vf=-1), pod)
        assert done.json["cniVersion"] == spoken


@pytest.mark.modes("process")
def test_a_fault_of_our_own_is_an_error_object_too(node: Node) -> None:
    node.prelude = "import sriov_fast.plugin.run; sriov_fast.plugin.run.run = lambda *_: 1 / 0"
    done = node.run("ADD", node.conf(), node.pod())
    assert (done.status, done.json["code"]) == (1, 999)
    assert "ZeroDivisionError" in done.json["msg"]
    assert "Traceback" in done.stderr


def test_the_environment_is_not_ours_to_obey(node: Node) -> None:
    """PYTHON* variables, the locale and the time zone have no effect."""
    strange = {"PYTHONPATH": "/nowhere", "PYTHONHOME": "/nowhere", "LC_ALL": "C", "TZ": "Mars"}
    assert node.run("VERSION", {}, env=strange).status == 0


def test_names_beyond_ascii(node: Node) -> None:
    before, pod = node.state(), node.pod()
    found = node.add(node.conf(), pod, ifname="größe~1")
    assert found["interfaces"][0]["name"] == "größe~1"
    node.delete(node.conf(), pod, ifname="größe~1")
    assert (node.state(), node.records(), node.locks()) == (before, [], [])
    assert json.dumps(found)
