"""The attach modes. Each is a module with the same functions, and a subclass of ``detach.Release``.

A VF with a userspace driver has no network device; its mode has no function ``enter``.
"""

from __future__ import annotations

from sriov_fast.vf import move
from sriov_fast.vf.journal import MACVLAN, USERSPACE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from sriov_fast.common.log import Logger
    from sriov_fast.common.paths import Roots
    from sriov_fast.kernel.backend import nl
    from sriov_fast.vf import detach
    from sriov_fast.vf.driver_socket import DriverSocket, Patience
    from sriov_fast.vf.find import PodNetns
    from sriov_fast.vf.journal import Attachment
    from sriov_fast.vf.select import ReservedVf

    class Mode(Protocol):
        """The module of an attach mode."""

        def observe(
            self, host: nl.Socket, reserved: ReservedVf, record: Attachment, roots: Roots
        ) -> Attachment:
            """Return the record with all that the attach will change, as it is now."""

        def configure(self, host: DriverSocket, record: Attachment) -> None:
            """Set the requested values through the PF, and the MAC."""

        def Release(  # noqa: N802 (a class)
            self, record: Attachment, pod_netns: PodNetns, roots: Roots, log: Logger, patience: Patience
        ) -> detach.Release:
            """Return the release of a VF."""

        def silence(self, record: Attachment, log: Logger) -> bool:
            """Cut off the VF of a pod that cannot be found; return whether its PF disabled the link."""

        def faults(self, record: Attachment, roots: Roots) -> list[str]:
            """Return the faults that CHECK finds in the host."""

        def is_detached(self, record: Attachment, roots: Roots) -> bool:
            """Return whether no namespace of a pod has the VF any more."""

    class Entering(Mode, Protocol):
        """The module of a mode that gives the pod an interface.

        ``WAITS``: the kernel waits in ``enter``, so other work should be done meanwhile. ``ENTER`` is the
        name of that step in a trace.
        """

        WAITS: bool
        ENTER: str

        def enter(self, host: DriverSocket, record: Attachment, netns_fd: int) -> None:
            """Give the pod its interface, up and with the pod's name."""


def of(record: Attachment) -> Mode:
    """Return the module of a record's attach mode."""
    if record.attach != USERSPACE:
        return entering(record)
    from sriov_fast.vf import userspace  # late: few nodes have such VFs

    return userspace


def entering(record: Attachment) -> Entering:
    """Return the module of the attach mode of a VF with a network device."""
    if record.attach != MACVLAN:
        return move
    from sriov_fast.vf import passthru  # late: most nodes use one mode

    return passthru
