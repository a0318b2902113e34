"""Errors of lookups ("could not look") fail the verb: it releases nothing and forgets nothing."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.server import interfered, needs_strace
from harness.veth import Node, ResidentNode


def failing(path: Path | str, error: str, *calls: str) -> tuple[str, ...]:
    """Return a command that makes system calls on one path fail."""
    return interfered(",".join(calls or ("openat", "open")), f"error={error}", path)


def attached(node: Node, **conf: Any) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Attach a VF with the built-in host-local; return configuration, pod, and the node's state."""
    pod, given = node.pod(), node.builtin(**conf)
    node.add(given, pod)
    return given, pod, node.kept()


STAT = ("stat", "newfstatat")
ACCESS = ("access", "faccessat", "faccessat2", *STAT)
# Paths that a DEL looks up: the namespace, the VF, the address store, the journal and the boot ID.
LOOKS: dict[str, Callable[[Node, str], Path | str]] = {
    "namespace": lambda node, pod: f"/run/netns/{pod}",
    "device": lambda node, pod: f"{node.tree.sys}/bus/pci/devices/{node.tree.pci(0)}",
    "net": lambda node, pod: f"{node.tree.sys}/bus/pci/devices/{node.tree.pci(0)}/net",
    "address": lambda node, pod: node.root / "ipam/net1/10.77.0.2",
    "store": lambda node, pod: node.root / "ipam/net1",
    "record": lambda node, pod: node.record(),
    "records": lambda node, pod: node.run_dir / "vfs",
    "boot": lambda node, pod: node.tree.proc / "sys/kernel/random/boot_id",
}
FAULTS: list[tuple[str, str, tuple[str, ...]]] = [
    *(("namespace", error, ()) for error in ("EMFILE", "ENFILE", "ENOMEM", "EIO", "EACCES", "ESTALE")),
    ("device", "ENOMEM", STAT),
    ("net", "ENOMEM", STAT),
    ("net", "ENOMEM", ("openat",)),
    *(("address", error, ()) for error in ("EMFILE", "EIO", "ENOMEM")),
    ("store", "ENOMEM", STAT),
    ("record", "ENOMEM", ACCESS),
    *(("record", error, ()) for error in ("EMFILE", "EIO")),
    *(("records", error, ()) for error in ("EMFILE", "EIO")),
    ("boot", "EMFILE", ()),
]


@needs_strace
@pytest.mark.parametrize(("what", "error", "calls"), FAULTS)
def test_a_del_that_cannot_look_changes_nothing(
    node: Node, what: str, error: str, calls: tuple[str, ...]
) -> None:
    """The DEL fails and keeps record and address; the next DEL releases them."""
    boot = node.tree.proc / "sys/kernel/random/boot_id"
    boot.parent.mkdir(parents=True)
    boot.write_text("this-boot\n")
    conf, pod, _ = attached(node)
    if (what, calls) == ("net", ("openat",)):  # a DEL reads the directory only if the VF is not in the pod
        node.ip("-n", pod, "link", "set", "eth0", "name", "pf0v0", "netns", node.host)
    before = node.kept()
    node.refused(5, "DEL", conf, pod, wrap=failing(LOOKS[what](node, pod), error, *calls))
    now = node.kept()
    assert (now["records"], now["leases"]) == (before["records"], before["leases"])
    # the VF may be back in the host before its address is looked up
    assert what in ("address", "store") or now == before
    node.delete(conf, pod)
    assert (node.records(), node.leases(), node.addresses_of(pod)) == ([], [], "")


def test_a_namespace_behind_a_loop(either: Node) -> None:
    """ELOOP for the namespace's path does not mean that the namespace is gone."""
    conf, pod, before = attached(either)
    loop = either.root / "loop"
    loop.symlink_to("loop")
    assert "ELOOP" in either.refused(5, "DEL", conf, str(loop), container=pod)
    assert either.kept() == before
    either.delete(conf, pod)
    assert (either.records(), either.leases()) == ([], [])


@pytest.mark.modes("resident")
def test_a_server_without_descriptors(node: ResidentNode) -> None:
    """The server keeps address and record if it lacks descriptors for releasing the VF."""
    conf, pod, before = attached(node)
    server = node.server.ready()
    server.idle()
    usual = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    refused = 0
    for more in range(5, 24):
        limit = max(map(int, os.listdir(f"/proc/{server.pid}/fd"))) + more
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (limit, usual[1]))
        done = node.run("DEL", conf, pod)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, usual)
        if done.status == 0:
            break
        refused += 1
        assert (node.records(), node.leases()) == (before["records"], before["leases"]), (more, done)
    assert (refused > 2, done.status) == (True, 0)
    node.homed()
    assert (node.records(), node.leases(), node.addresses_of(pod)) == ([], [], "")


@needs_strace
def test_an_add_that_cannot_read_the_store(node: Node) -> None:
    """An ADD fails if it cannot read an address file of the store."""
    conf, pod, _ = attached(node)
    (node.root / "ipam/net1/10.77.0.9").write_text("another\r\neth0")  # the index lacks this file
    other = node.pod()
    before, more = node.kept(), conf | {"vf": 1}
    file = node.root / "ipam/net1/10.77.0.9"
    node.refused(5, "ADD", more, other, wrap=failing(file, "EMFILE"))
    assert node.kept() == before
    node.add(more, other)
    node.delete(conf, pod)


@needs_strace
def test_a_pf_that_cannot_be_read(node: Node) -> None:
    """A failed lookup of the PF is an I/O error, not an error in the configuration."""
    pod = node.pod()
    before = node.kept()
    wrap = failing(f"{node.tree.sys}/class/net/pf0/device", "EMFILE")
    assert "EMFILE" in node.refused(5, "ADD", node.conf(), pod, wrap=wrap)
    assert node.kept() == before


@needs_strace
def test_an_undo_that_cannot_find_the_vf(node: Node) -> None:
    """An undo keeps the address if it cannot return the VF to the host: the VF is up with that address."""
    pod = node.pod()
    ipam = node.host_local(delegate=False, routes=[{"dst": "192.0.2.0/24", "gw": "172.16.0.1"}])
    conf = node.conf(vf=0, ipam=ipam)
    node.refused(100, "ADD", conf, pod, wrap=failing(f"/run/netns/{pod}", "EMFILE:when=2+", "openat"))
    assert (len(node.records()), node.leases()) == (1, ["10.77.0.2"])
    assert node.link("eth0", pod)
    node.delete(conf, pod)
    assert (node.records(), node.leases(), node.addresses_of(pod)) == ([], [], "")


@needs_strace
def test_an_earlier_add_whose_address_cannot_be_given_back(node: Node) -> None:
    """A second ADD keeps the record of a killed first ADD if it cannot return that ADD's address."""
    conf, pod = node.conf(vf=0, ipam=node.other_ipam()), node.pod()
    draft = str(node.run_dir / "vfs" / f".{node.tree.pci(0)}")
    node.run("ADD", conf, pod, wrap=interfered("rename", "signal=SIGKILL:when=2", draft))
    record = node.records()
    assert len(record) == 1
    node.other_ipam(DEL="exit 1")
    node.refused(102, "ADD", conf, pod)
    assert node.records() == record
    node.other_ipam()
    node.add(conf, pod)
    node.delete(conf, pod)
    assert node.records() == []


@needs_strace
def test_an_interrupt_whose_mask_cannot_be_opened(node: Node) -> None:
    """A DEL that cannot open an interrupt's mask fails, and keeps the record of the original mask."""
    conf, pod, _ = attached(node, cores=[1, 2])
    mask = node.tree.mask(node.tree.irqs(0)[0])
    record, address = node.records(), node.addresses_of(pod)
    node.refused(5, "DEL", conf, pod, wrap=failing(mask, "EMFILE:when=2+", "openat"))
    assert (node.records(), node.leases(), node.addresses_of(pod)) == (record, ["10.77.0.2"], address)
    node.delete(conf, pod)
    assert mask.read_text().strip() == "ff"
