"""The RDMA subsystem of a real kernel, with soft RoCE on a VF; its driver does not support namespaces."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from harness.card import Card, Node
from harness.waiting import wait_for
from sriov_fast.common.errors import KernelError
from sriov_fast.common.paths import Roots
from sriov_fast.vf import rdma
from sriov_fast.vf.journal import Attachment

NAME = "rxe0"


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def soft(card: Card) -> Iterator[str]:
    """The name of a soft RoCE device on a VF, with the RDMA subsystem in exclusive mode."""
    loaded = subprocess.run(["modprobe", "rdma_rxe"], check=False, capture_output=True)
    if loaded.returncode or shutil.which("rdma") is None:
        pytest.skip("the kernel has no rdma_rxe, or rdma(8) is missing")
    before = run("rdma", "system", "show")
    run("rdma", "system", "set", "netns", "exclusive")
    run("rdma", "link", "add", NAME, "type", "rxe", "netdev", card.vf(0).netdev)
    yield NAME
    subprocess.run(["rdma", "link", "del", NAME], check=False, capture_output=True)
    if "netns shared" in before:  # the kernel refuses this until the pods' namespaces are removed
        back = ("rdma", "system", "set", "netns", "shared")
        wait_for(lambda: subprocess.run(back, check=False).returncode == 0, "the mode is not shared again")


def test_mode_devices_and_refusal(soft: str, node: Node, card: Card) -> None:
    """The kernel accepts the messages; its refusal to move a device is an error that names the device."""
    assert not rdma.is_shared()
    device = next(each for each in rdma.devices() if each.name == soft)
    pod = node.pod()
    record = Attachment(
        container_id="c",
        ifname="eth0",
        pci=card.vf(0).pci,
        netns=f"/run/netns/{pod}",
        rdma=device.name,
        rdma_index=device.index,
    )
    fd = os.open(record.netns, os.O_RDONLY)
    try:
        with pytest.raises(KernelError, match="cannot be moved") as caught:
            rdma.enter(record, fd)
        assert rdma.devices(fd) == []
    finally:
        os.close(fd)
    assert caught.value.errno == errno.EOPNOTSUPP
    assert device in rdma.devices()


def test_an_add_is_undone(soft: str, node: Node, card: Card) -> None:
    """An ADD that cannot move the RDMA device, or finds none for the VF, fails and leaves no record."""
    shown = os.path.isdir(f"{Roots().device(card.vf(0).pci)}/infiniband")
    conf = node.conf(vf=0, rdma=True, ipam=None)
    said = node.refused(100 if shown else 7, "ADD", conf, node.pod())
    assert said.startswith(f"rdma: {soft}" if shown else f"rdma: {card.vf(0).pci} has no RDMA device here")
    assert node.records() == []
