"""All errors of the package: one base class, a CNI code for each, and the kernel's facts as fields.

Codes 1 to 99 are CNI's (SPEC.md, section "Error"); from 100 on they are ours. Only ``cni/response.py``
converts an error to CNI's JSON.
"""

from __future__ import annotations

import errno as errnos
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# A lack of descriptors or memory: neither the kernel nor a driver has decided about the request.
EXHAUSTED = frozenset((errnos.EMFILE, errnos.ENFILE, errnos.ENOMEM))
_ABSENT = frozenset((errnos.ENOENT, errnos.ENOTDIR, errnos.ENODEV))


def is_absent(error: OSError | SriovError) -> bool:
    """Return whether an error means "does not exist"; any other error means "unknown"."""
    return error.errno in _ABSENT


def is_there(path: str) -> bool:
    """Return whether a path exists. Raises OSError if that is unknown."""
    try:
        os.stat(path)
    except OSError as error:
        if is_absent(error):
            return False
        raise
    return True


class SriovError(Exception):
    """The base class of all errors.

    ``msg`` is the fault in one line, with the key and the value; ``details`` is the remedy. ``errno``,
    ``interface``, ``vf`` (index) and ``extack`` (the kernel's message) are set if they are known.
    """

    code = 999

    def __init__(  # noqa: PLR0913 (facts, each by its name)
        self,
        msg: str,
        details: str = "",
        *,
        code: int = 0,
        errno: int = 0,
        interface: str = "",
        vf: int = -1,
        extack: str = "",
    ) -> None:
        super().__init__(msg)
        self.msg = msg
        self.details = details
        if code:
            self.code = code
        self.errno = errno
        self.interface = interface
        self.vf = vf
        self.extack = extack


class VersionError(SriovError):
    """The configuration has a CNI version that is not supported (code 1)."""

    code = 1


class EnvError(SriovError):
    """A ``CNI_*`` variable is missing or wrong (code 4)."""

    code = 4


class NoNamespaceError(EnvError):
    """There is certainly no network namespace at a path (code 4)."""


class FileError(SriovError):
    """Reading or writing a file or a pipe failed (code 5)."""

    code = 5


class DecodeError(SriovError):
    """Input that is not JSON, or not in the form of CNI (code 6)."""

    code = 6


class ConfigError(SriovError):
    """The network configuration or ``CNI_ARGS`` are wrong, or ask for something impossible (code 7)."""

    code = 7


class RefusedError(ConfigError):
    """The configuration names a file that root does not allow (code 7)."""


class TryAgainError(SriovError):
    """A temporary failure: no free VF, a lock held too long. The runtime should retry (code 11)."""

    code = 11


class HiddenError(TryAgainError):
    """A VF's device exists in a network namespace that cannot be found (code 11)."""


class UnavailableError(SriovError):
    """STATUS: no ADD can be served (code 50)."""

    code = 50


class KernelError(SriovError):
    """The kernel refused a change (code 100)."""

    code = 100


class NetlinkError(KernelError):
    """The kernel answered an rtnetlink request with an error.

    ``position`` is the request's place in the batch, counted from 0; ``results`` has the result of every
    message of the batch, errors included.
    """

    def __init__(self, errno: int, extack: str = "", position: int = 0, operation: str = "") -> None:
        said = extack or os.strerror(errno)
        super().__init__(f"{operation or 'rtnetlink'}: {said}", errno=errno, extack=extack)
        self.position = position
        self.operation = operation
        self.results: list[object] = []


class BusyError(SriovError):
    """The VF, the interface or the address is already in use (code 101)."""

    code = 101


class OccupiedError(BusyError):
    """A VF has a device on top that the host does not see (code 101). ``pci`` is the VF's address."""

    def __init__(self, msg: str, details: str, *, pci: str, **facts: Any) -> None:
        super().__init__(msg, details, **facts)
        self.pci = pci


class IpamError(SriovError):
    """The IPAM plugin could not be run, or its answer is not a CNI result (code 102).

    A well-formed error of the plugin keeps its own code.
    """

    code = 102


class CheckError(SriovError):
    """CHECK found the pod's interface changed since it was attached (code 103)."""

    code = 103
