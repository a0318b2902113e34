"""The return of a VF to the host where a driver refuses what is not essential to it."""

from __future__ import annotations

import errno

import pytest

from sriov_fast.common.errors import NetlinkError
from sriov_fast.common.log import Logger
from sriov_fast.common.record import Link
from sriov_fast.kernel.backend import nl
from sriov_fast.vf import detach


class Refusing:
    """A socket to a kernel that refuses every change."""

    def __init__(self, refused: int) -> None:
        self.asked: list[bytes] = []
        self._refused = refused

    def run(self, batch: nl.Batch) -> None:
        self.asked.append(batch.tobytes())
        raise NetlinkError(self._refused, operation="set link of eth7")


@pytest.mark.parametrize("refused", [errno.ENETDOWN, errno.EIO])
def test_a_device_that_will_not_come_up_is_a_warning(capfd: pytest.CaptureFixture[str], refused: int) -> None:
    host, wanted = Refusing(refused), nl.Batch()
    detach.bring_up(host, Link(index=7, name="eth7", mac="", mtu=0, up=False), Logger())  # type: ignore[arg-type]
    wanted.set_link(7, up=True)
    assert host.asked == [wanted.tobytes()]
    said = capfd.readouterr().err
    assert "level=warning" in said
    assert "interface=eth7" in said
    assert "set link of eth7" in said
