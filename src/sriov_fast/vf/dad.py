"""Duplicate address detection of a pod's IPv6 addresses (RFC 4862, section 5.4), with the key ``enabledad``.

The kernel asks the link for each address within two seconds after the device has its link.
"""

from __future__ import annotations

import time

from sriov_fast.common.errors import BusyError, TryAgainError
from sriov_fast.common.interpreter import INTERPRETER
from sriov_fast.kernel.backend import nl
from sriov_fast.vf import candidate, netns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sriov_fast.common.log import Logger
    from sriov_fast.vf.journal import Attachment

LONGEST = 10.0  # seconds to wait; the reference plugin bridge has waited for 10 or 5 in its versions
_PAUSE = 0.02
IFA_F_DADFAILED, IFA_F_TENTATIVE = 0x08, 0x40  # linux/if_addr.h; a failed address stays tentative


def settle(pod: nl.Socket, record: Attachment, patience: float, log: Logger) -> None:
    """Wait until the kernel has checked the addresses.

    Raises BusyError for an address that another machine has, TryAgainError after ``patience`` seconds.
    Without carrier the kernel cannot ask: the addresses are then checked when the link comes up.
    """
    index = netns.index_of(pod.fileno(), record.ifname)
    end = time.monotonic() + patience
    while pending := _having(pod, index, record, IFA_F_TENTATIVE):
        if duplicates := _having(pod, index, record, IFA_F_DADFAILED):
            raise BusyError(
                f"address {', '.join(duplicates)}: another machine on the link of {record.ifname} has it "
                "(duplicate address detection)",
                "see which machine has it, and which addresses IPAM may give",
                interface=record.ifname,
                vf=record.vf,
            )
        if time.monotonic() >= end:
            _give_up(pod, index, record, pending, log)
            return
        with INTERPRETER.released():
            time.sleep(_PAUSE)


def _having(pod: nl.Socket, index: int, record: Attachment, flag: int) -> list[str]:
    """Return the pod's addresses with a flag."""
    flagged = pod.addresses(index, flags=flag)
    return [cidr for cidr in record.addresses if cidr in flagged]


def _give_up(pod: nl.Socket, index: int, record: Attachment, pending: list[str], log: Logger) -> None:
    addresses = ", ".join(pending)
    if candidate.at(pod, index).carrier:
        raise TryAgainError(
            f"address {addresses}: duplicate address detection on {record.ifname} has not ended in time",
            "give a longer timeout, or leave enabledad out",
            interface=record.ifname,
            vf=record.vf,
        )
    log.warning(
        "the link is down: addresses are checked for duplicates when it comes up", addresses=addresses
    )
