"""The way home where a driver refuses what is not essential to it."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from sriov_fast.common.errors import NetlinkError
from sriov_fast.common.log import Logger
from sriov_fast.common.record import Link
from sriov_fast.vf import detach


@pytest.mark.parametrize("refused", [errno.ENETDOWN, errno.EIO])
def test_a_device_that_will_not_come_up_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], refused: int
) -> None:
    asked: list[dict[str, Any]] = []

    def run(socket: object, index: int, **change: object) -> None:
        asked.append({"index": index} | change)
        raise NetlinkError(refused, operation="set link of eth7")

    monkeypatch.setattr(detach, "_run", run)
    home = Link(index=7, name="eth7", mac="", mtu=0, up=False)
    detach.bring_up(object(), home, Logger())  # type: ignore[arg-type]
    assert asked == [{"index": 7, "up": True}]
    said = capfd.readouterr().err
    assert "level=warning" in said
    assert "interface=eth7" in said
    assert "set link of eth7" in said
