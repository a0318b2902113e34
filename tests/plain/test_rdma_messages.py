"""The messages to the RDMA subsystem, and the return of a device from a deleted namespace."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import rdma_kernel
from sriov_fast.common import log
from sriov_fast.common.errors import ConfigError, HiddenError
from sriov_fast.common.paths import Roots
from sriov_fast.kernel.netlink import constants as c
from sriov_fast.vf import find, rdma
from sriov_fast.vf.find import PodNetns
from sriov_fast.vf.journal import Attachment

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="the bytes are little-endian")

# The bytes that rdma(8) sends for `rdma dev set mlx5_3 netns POD`: device index 7, descriptor 5.
MOVE = bytes.fromhex("20000000 0214 0500 00000000 00000000 0800 0100 07000000 0800 4400 05000000")
RECORD = Attachment(container_id="c", ifname="eth0", pci="0000:01:10.0", rdma="mlx5_3", rdma_index=7)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], Path]:
    """A function that installs the simulated RDMA subsystem with one device."""
    monkeypatch.setattr(rdma, "nl", rdma.nl)  # restored afterwards
    monkeypatch.setattr(find, "RETURN_WAIT", 0.05)

    def install(name: str, place: int) -> Path:
        path = tmp_path / "rdma.json"
        path.write_text(json.dumps({"shared": False, "refuses": 0, "devices": {"7": [name, place]}}))
        rdma_kernel.install(str(path))
        return path

    return install


def test_a_move_as_bytes() -> None:
    asked = {rdma.DEV_INDEX: (7).to_bytes(4, "little"), rdma.NET_NS_FD: (5).to_bytes(4, "little")}
    assert rdma.request(rdma.CMD_SET, c.NLM_F_ACK, asked) == MOVE


def test_two_devices_and_the_end() -> None:
    first = bytes.fromhex("24000000 0114 0200 00000000 00000000 0800 0100 07000000 0b00 0200") + b"mlx5_3\0\0"
    answers: list[dict[int, bytes]] = []
    assert not rdma.decode(first + first, answers)
    assert answers == [{1: b"\7\0\0\0", 2: b"mlx5_3\0"}] * 2
    assert rdma.decode(bytes.fromhex("14000000 0300 0200 00000000 00000000 00000000"), answers)


def test_a_refusal() -> None:
    refusal = bytes.fromhex("24000000 0200 0000 00000000 00000000 a1ffffff") + MOVE[:16]
    with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)) as caught:
        rdma.decode(refusal, [])
    assert caught.value.errno == errno.EOPNOTSUPP


def test_a_namespace_that_is_gone(kernel: Callable[[str, int], Path], tmp_path: Path) -> None:
    """A device that the kernel has returned under the pod's name gets its old name back."""
    path = kernel("renamed", rdma_kernel.inode(-1))
    record = RECORD.replace(netns=str(tmp_path / "gone"))
    (tmp_path / "bus/pci/devices" / RECORD.pci / "infiniband").mkdir(parents=True)
    rdma.bring_home(record, PodNetns(), Roots(sys=str(tmp_path)), log.Logger("error"))
    assert json.loads(path.read_text())["devices"]["7"][0] == "mlx5_3"


def test_a_device_that_is_not_found(kernel: Callable[[str, int], Path], tmp_path: Path) -> None:
    kernel("mlx5_3", 1)
    record = RECORD.replace(netns=str(tmp_path / "gone"))
    rdma.bring_home(record, PodNetns(), Roots(sys=str(tmp_path)), log.Logger("error"))  # no such device
    (tmp_path / "bus/pci/devices" / RECORD.pci / "infiniband").mkdir(parents=True)
    with pytest.raises(HiddenError, match="its RDMA device mlx5_3 is in a namespace that is not found"):
        rdma.bring_home(record, PodNetns(), Roots(sys=str(tmp_path)), log.Logger("error"))


def test_a_kernel_without_rdma(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> int:
        raise OSError(errno.EPROTONOSUPPORT, "Protocol not supported")

    monkeypatch.setattr(rdma, "nl", type("nl", (), {"raw_socket": staticmethod(refuse)}))
    with pytest.raises(ConfigError, match="the kernel has no RDMA subsystem"):
        rdma.is_shared()
