"""An ADD that fails at any step restores the original state."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.server import interfered
from harness.veth import ADDRESS, Node, fill, said, tmpfs

pytestmark = pytest.mark.modes("process", "resident")

Prepare = Callable[[Node, str], dict[str, Any]]


def host_local_is_exhausted(node: Node, pod: str) -> dict[str, Any]:
    only = {"rangeStart": "10.77.0.2", "rangeEnd": "10.77.0.2"}
    conf = node.conf(ipam=node.host_local(**only))
    node.add(conf, node.pod())
    return conf


def pod_has_the_name(node: Node, pod: str) -> dict[str, Any]:
    node.ip("-n", pod, "link", "add", "eth0", "type", "veth", "peer", "name", "its-peer")
    return node.conf(ipam=node.host_local())


def pf_refuses_mac(node: Node, pod: str) -> dict[str, Any]:
    """Return a configuration with a MAC that the device accepts and the PF refuses."""
    return node.conf(ipam=node.host_local(), mac="02:00:00:00:00:77")


def gateway_is_unreachable(node: Node, pod: str) -> dict[str, Any]:
    return node.conf(ipam=node.host_local(routes=[{"dst": "192.0.2.0/24", "gw": "172.16.0.1"}]))


def runs(script: str, kind: str = "txipam") -> Prepare:
    """Configure an IPAM plugin that runs a script at ADD; "dhcp" runs after the move, with the VF up."""
    return lambda node, pod: node.conf(ipam=node.other_ipam(kind, ADD=script))


def answers(**more: object) -> Prepare:
    """Configure an IPAM plugin that replies with a valid address and further fields."""
    return runs(said(ADDRESS | more))


TWICE = [*ADDRESS["ips"], {"address": "fd00::2/64"}, {"address": "fd00::2/128"}]
WANTED = {"vlan": 5, "mac": "02:00:00:00:00:78"}
FOREIGN = [{"dst": "192.0.2.0/24", "gw": "fd00::1"}]
STEPS: dict[str, tuple[Prepare, int, str]] = {
    "IPAM fails": (runs(said({"code": 11, "msg": "none left"}) + "; exit 1"), 11, "none left"),
    "IPAM is killed": (runs("kill -9 $$"), 102, "signal 9"),
    "IPAM talks garbage": (runs("echo hello"), 102, "hello"),
    "IPAM gives a name": (answers(ips=[{"address": "example.org"}]), 102, "example.org"),
    "IPAM is silent": (runs("true"), 102, "without a result"),
    "IPAM names no VF of the PF": (answers(extra={"vf": 77}), 7, "vf 77"),
    "IPAM names a wrong VLAN": (answers(extra={"vlan": 4095}), 102, "4095"),
    "DHCP has no daemon": (runs(said({"code": 999, "msg": "dial"}) + "; exit 1", "dhcp"), 999, "dial"),
    "host-local is exhausted": (host_local_is_exhausted, 999, "no IP addresses available"),
    "the pod has the name": (pod_has_the_name, 101, "'eth0'"),
    "the PF refuses the VLAN": (lambda node, pod: node.builtin(vlan=100), 100, "vlan 100"),
    "the PF refuses the MAC": (pf_refuses_mac, 100, "02:00:00:00:00:77"),
    "the PF refuses what IPAM wants": (answers(extra=WANTED), 100, "vlan 5"),
    "a gateway of another version": (answers(routes=FOREIGN), 102, "fd00::1"),
    "a gateway that is not reached": (gateway_is_unreachable, 100, "192.0.2.0/24 via 172.16.0.1"),
    "an address that is there already": (answers(ips=TWICE), 100, "fd00::2/128"),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("was_up", [False, True], ids=["was down", "was up"])
@pytest.mark.modes("resident")
def test_a_failing_step(node: Node, step: str, was_up: bool) -> None:
    prepare, code, words = STEPS[step]
    for name in node.state() if was_up else ():
        node.nip("link", "set", name, "up", "mtu", "1400")
    pod = node.pod()
    conf = prepare(node, pod)
    before = node.snapshot()
    assert words in node.refused(code, "ADD", conf, pod)
    assert node.snapshot() == before
    if (node.root / "calls").exists():
        assert node.calls() == ["ADD", "DEL"]


@pytest.mark.parametrize("prepare", [pod_has_the_name, pf_refuses_mac, gateway_is_unreachable])
@pytest.mark.modes("resident")
def test_a_failing_step_on_the_plain_backend(make_node: Any, prepare: Prepare) -> None:
    node = make_node(vfs=1, backend="python")
    pod = node.pod()
    conf = prepare(node, pod)
    before = node.snapshot()
    assert node.run("ADD", conf, pod).status == 1
    assert node.snapshot() == before


def test_an_mtu_that_the_device_refuses(node: Node) -> None:
    """The kernel refuses the MTU after it has moved the device."""
    node.nip("link", "del", "pf0v0")
    node.nip("link", "add", "lower", "type", "veth", "peer", "name", "lower-peer")
    node.nip("link", "add", "link", "lower", "name", "pf0v0", "type", "macvlan")
    pod = node.pod()
    before = (node.link("pf0v0"), node.snapshot())
    assert "mtu 9000" in node.refused(7, "ADD", node.conf(mtu=9000, vf=0, ipam=node.host_local()), pod)
    assert (node.link("pf0v0"), node.snapshot()) == before


@pytest.mark.modes("process")
def test_ipam_that_hangs_is_killed_and_undone(node: Node) -> None:
    conf = node.conf(ipam=node.other_ipam(ADD='echo $$ > "$ROOT/pid"; exec sleep 1000'))
    node.prelude = "import sriov_fast.plugin.addresses; sriov_fast.plugin.addresses.IPAM_WAIT = 0.5"
    pod = node.pod()
    before = node.snapshot()
    assert "has not ended after 0.5 s" in node.refused(11, "ADD", conf, pod)
    assert node.snapshot() == before
    assert node.calls() == ["ADD", "DEL"]
    assert not Path("/proc", (node.root / "pid").read_text().strip()).exists()


def test_ipam_that_is_not_there_was_not_run(node: Node) -> None:
    pod = node.pod()
    before = node.snapshot()
    done = node.run("ADD", node.conf(ipam={"type": "no-such"}), pod)
    assert (done.status, done.json["code"]) == (1, 102)
    assert "no-such" in done.json["msg"]
    assert done.stderr == "", "there is nothing to undo, and nothing to say of it"
    assert node.snapshot() == before


def test_an_address_is_given_back_when_the_vf_is_quiet(node: Node) -> None:
    """The address is returned only when the VF no longer answers for it: the next pod may get it."""
    show = 'ip -n "$(basename "$CNI_NETNS")" -o link show eth0 > "$ROOT/at-del" 2>&1'
    beyond = [{"dst": "192.0.2.0/24", "gw": "172.16.0.1"}]
    conf = node.conf(ipam=node.other_ipam(ADD=said(ADDRESS | {"routes": beyond}), DEL=show))
    pod = node.pod()
    assert node.run("ADD", conf, pod).status == 1
    assert "does not exist" in (node.root / "at-del").read_text()
    node.other_ipam(DEL=show)
    node.add(conf, pod)
    node.delete(conf, pod)
    seen = (node.root / "at-del").read_text()
    assert "does not exist" in seen or ",UP" not in seen


@pytest.mark.modes("process", "resident", falls_back=True)
@pytest.mark.parametrize("why", ["Broken pipe", "No space left"])
def test_a_result_that_cannot_be_written(either: Node, why: str) -> None:
    """An ADD that cannot write its result is undone, including the masks of interrupts."""
    node, pod = either, either.pod()
    before = node.snapshot()
    reader, stdout = os.pipe()
    os.close(reader)
    if why == "No space left":
        os.close(stdout)
        stdout = os.open("/dev/full", os.O_WRONLY)
    process = node.start("ADD", node.conf(ipam=node.host_local(), cores=[1]), pod, stdout=stdout)
    os.close(stdout)
    done = node.finish(process)
    assert done.status == 1
    assert f"stdout: {why}" in done.stderr
    assert node.snapshot() == before


@pytest.mark.parametrize("closed", ["0", "1", "2", "all"])
@pytest.mark.modes("process", "resident", falls_back=True)
def test_closed_streams(node: Node, closed: str) -> None:
    """No file of the plugin gets the number of a closed stream, to which a reply or a log would go."""
    streams = "0 1 2" if closed == "all" else closed
    how = " ".join({"0": "0<&-", "1": "1>&-", "2": "2>&-"}[fd] for fd in streams.split())
    pod = node.pod()
    before = node.snapshot()
    wrap = ("sh", "-c", f'"$0" "$@" {how}')
    done = node.run("ADD", node.conf(ipam=node.host_local()), pod, wrap=wrap)
    if closed == "2":
        assert (done.status, done.json["ips"][0]["address"]) == (0, "10.77.0.2/24")
        return
    assert done.status == 1
    assert node.snapshot() == before
    if closed == "0":
        assert done.json["code"] == 6
    if closed == "1":
        assert "stdout is closed" in done.stderr


@pytest.mark.modes("process")
def test_a_full_run_directory(either: Node) -> None:
    """On a full file system an ADD is refused, since it needs a record; a DEL succeeds."""
    node, pod, other = either, either.pod(), either.pod()
    empty = node.state()
    conf = node.conf(ipam=node.host_local())
    with tmpfs(node.run_dir, "size=64k"):
        node.add(conf, pod)
        fill(node.run_dir)
        before = node.snapshot()
        said = node.refused(5, "ADD", conf, other)
        assert "No space left" in said
        assert str(node.run_dir) in said
        assert node.snapshot() == before
        node.delete(conf, pod)
        assert (node.state(), node.records(), node.leases(), node.locks()) == (empty, [], [], [])


@pytest.mark.modes("process")
def test_no_inode_left_for_a_lock(node: Node) -> None:
    pod = node.pod()
    with tmpfs(node.run_dir, "nr_inodes=2"):
        before = node.snapshot()
        assert "No space left" in node.refused(5, "ADD", node.conf(ipam=node.host_local()), pod)
        assert node.snapshot() == before


@pytest.mark.modes("process")
@pytest.mark.fresh
def test_a_run_directory_that_cannot_be_one(node: Node) -> None:
    node.run_dir.write_text("a file\n")
    before, pod = node.state(), node.pod()
    said = node.refused(5, "ADD", node.conf(ipam=node.host_local()), pod)
    assert str(node.run_dir) in said
    assert (node.state(), node.leases()) == (before, [])
    assert node.run_dir.read_text() == "a file\n"


@pytest.mark.modes("process")
def test_ipam_that_chose_before_the_crash_is_asked_to_give_back(node: Node) -> None:
    """A DEL executes the IPAM plugin although the ADD was killed after IPAM's reply and before the record."""
    conf, pod = node.conf(ipam=node.other_ipam()), node.pod()
    before = node.state()
    done = node.run("ADD", conf, pod, wrap=interfered("rename", "signal=SIGKILL:when=1"))
    assert done.status in (-signal.SIGKILL, 128 + signal.SIGKILL), done
    assert (node.calls(), node.records()) == (["ADD"], [])
    node.delete(conf, pod)
    assert (node.calls(), node.state()) == (["ADD", "DEL"], before)


@pytest.mark.modes("process")
def test_the_records_file_is_whole_at_all_times(node: Node) -> None:
    """After a SIGKILL during the write of a draft, the old record or none exists."""
    pod, conf = node.pod(), node.conf()
    draft = node.run_dir / "vfs" / f".{node.tree.pci(0)}"
    done = node.run("ADD", conf, pod, wrap=interfered("write", "signal=SIGKILL:when=1", draft))
    assert done.status in (-signal.SIGKILL, 128 + signal.SIGKILL), done
    assert node.records() == []
    node.add(conf, pod)
    assert node.record().read_text().startswith("{")
