"""A macvlan in another namespace on top of a VF: the kernel may still be removing that of another pod."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from harness import busy_driver
from harness.veth import Node, ResidentNode, let_go
from harness.waiting import wait_for

GIVE = """echo '{"ips":[{"address":"10.1.0.2/24"}]EXTRA}'"""


@pytest.fixture
def hidden(node: Node) -> Iterator[str]:
    """A namespace with a macvlan on the first VF."""
    name = f"{node.host}-other"
    node.ip("netns", "add", name)
    words = (
        "link",
        "pf0v0",
        "name",
        "mv0",
        "netns",
        name,
        "type",
        "macvlan",
        "mode",
        "passthru",
        "nopromisc",
    )
    node.nip("link", "add", *words)
    yield name
    node.ip("netns", "del", name)


@pytest.mark.fresh  # the kernel removes the macvlan later
@pytest.mark.modes("resident")
def test_917_the_next_vf_is_taken(node: Node, hidden: str) -> None:
    """An ADD that met a VF with such a macvlan failed, though another VF was free."""
    pod, other = node.pod(), node.pod()
    before = node.state()
    conf = node.conf(attach="macvlan", ipam=node.host_local(delegate=False))
    node.add(conf, pod)
    assert [record.partition("~")[0] for record in node.records()] == [node.tree.pci(1)]
    assert len(node.leases()) == 1
    said = node.refused(11, "ADD", conf, other)
    assert "VF 0 of pf0 is used by the host: a device in another namespace on top of it" in said
    node.delete(conf, pod)
    assert (node.state(), node.leases()) == (before, [])


@pytest.mark.fresh
def test_917_a_named_vf(node: Node, hidden: str) -> None:
    """The error says why, and everything is undone: no other VF is taken."""
    before = node.kept()
    said = node.refused(101, "ADD", node.conf(attach="macvlan", vf=0), node.pod())
    assert said.startswith("attach macvlan: VF 0 of pf0 (pf0v0) has a device on top of it")
    assert node.kept() == before | {"pods": node.kept()["pods"]}


@pytest.mark.fresh
@pytest.mark.modes("process", "resident")
def test_917_ipam_names_the_same_vf_again(node: Node, hidden: str) -> None:
    """IPAM decides: its VF is refused with the reason, and each of its addresses is given back."""
    give = GIVE.replace("EXTRA", ',"extra":{"vf":0}')
    node.delegate("txipam", f'[ "$CNI_COMMAND" = ADD ] && {give}')
    before = node.kept()
    conf = node.conf(attach="macvlan", ipam={"type": "txipam", "delegate": True})
    said = node.refused(101, "ADD", conf, node.pod())
    assert "vf 0 of pf0 is used by the host: a device in another namespace on top of it" in said
    assert node.calls() == ["ADD", "DEL", "ADD", "DEL"]
    assert node.kept() == before | {"pods": node.kept()["pods"]}


@pytest.mark.fresh
@pytest.mark.modes("resident", falls_back=True)
@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_917_killed_between_the_attempts(node: ResidentNode, hidden: str, command: str) -> None:
    """The server is killed when it has given up the first VF; the client does the whole by itself.

    With "DEL" the address of the first attempt is being given back, with "ADD" the second one is asked for.
    """
    first = "" if command == "DEL" else '[ -e "$ROOT/first" ] || { : >"$ROOT/first"; GIVE; exit 0; }\n'
    wait = '[ -e "$ROOT/between" ] || { : >"$ROOT/between"; while [ ! -e "$ROOT/go" ]; do sleep 0.02; done; }'
    give = GIVE.replace("EXTRA", "")
    script = f'if [ "$CNI_COMMAND" = {command} ]; then\n{first}{wait}\nfi\n[ "$CNI_COMMAND" = ADD ] && GIVE'
    node.delegate("other", script.replace("GIVE", give))
    before, pod = node.state(), node.pod()
    conf = node.conf(cniVersion="1.1.0", attach="macvlan", ipam={"type": "other"})
    process = node.start("ADD", conf, pod)
    wait_for((node.root / "between").exists, "no second attempt was made")
    node.server.kill()
    let_go(node)
    done = node.finish(process)
    assert (done.status, node.addresses("eth0", pod)) == (0, ["10.1.0.2/24"]), done
    assert [record.partition("~")[0] for record in node.records()] == [node.tree.pci(1)]
    node.check(conf, pod, done.json)
    node.delete(conf, pod)
    assert node.calls()[-1] == "DEL"
    assert (node.state(), node.records(), node.drafts(), node.held()) == (before, [], [], [])


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBUSY], ids=errno.errorcode.get)
def test_917_a_macvlan_that_ends(node: Node, number: int) -> None:
    """An ADD for a VF whose old macvlan ended a moment later failed."""
    node.prelude = busy_driver.prelude(number, macvlan=3)
    pod, conf = node.pod(), node.conf(attach="macvlan", vf=0)
    node.add(conf, pod)
    node.prelude = "pass"
    node.delete(conf, pod)
