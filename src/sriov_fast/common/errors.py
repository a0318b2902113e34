"""Every error of the house: one base class, one CNI code each, what the kernel said as fields.

Codes 1 to 99 are CNI's (SPEC.md, section "Error"); from 100 on they are ours. A room raises what
describes the fault best and lets it rise; ``cni/response.py`` alone turns it into CNI's JSON.
"""

from __future__ import annotations

import errno as errnos
import os

# No means left to ask or to act: no verdict of the kernel or of a driver on what was asked.
EXHAUSTED = frozenset((errnos.EMFILE, errnos.ENFILE, errnos.ENOMEM))
_ABSENT = frozenset((errnos.ENOENT, errnos.ENOTDIR, errnos.ENODEV))


def is_absent(error: OSError | SriovError) -> bool:
    """Say whether an error means "not there"; with any other one it could not be found out."""
    return error.errno in _ABSENT


def is_there(path: str) -> bool:
    """Say whether a path exists; raises OSError where that could not be found out."""
    try:
        os.stat(path)
    except OSError as error:
        if is_absent(error):
            return False
        raise
    return True


class SriovError(Exception):
    """Base of all errors here.

    ``msg`` says in one line what is wrong and names the key and the value; ``details`` says what to do.
    ``errno``, ``interface``, ``vf`` (index) and ``extack`` (the kernel's own words) are set where known.
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
    """The configuration speaks a CNI version that we do not (code 1)."""

    code = 1


class EnvError(SriovError):
    """A ``CNI_*`` variable is missing or wrong (code 4)."""

    code = 4


class NoNamespaceError(EnvError):
    """There is no network namespace at a path, and certainly none (code 4)."""


class FileError(SriovError):
    """Reading or writing a file or a pipe failed (code 5)."""

    code = 5


class DecodeError(SriovError):
    """Input that is no JSON, or not of the form that CNI asks for (code 6)."""

    code = 6


class ConfigError(SriovError):
    """The network configuration or ``CNI_ARGS`` ask for what is not possible (code 7)."""

    code = 7


class RefusedError(ConfigError):
    """The configuration names a file that root does not let it name (code 7)."""


class TryAgainError(SriovError):
    """Nothing is wrong that time will not mend: no free VF, a lock held too long (code 11)."""

    code = 11


class HiddenError(TryAgainError):
    """A VF's device exists, in a network namespace that cannot be reached from here (code 11)."""


class UnavailableError(SriovError):
    """STATUS: no ADD can be served (code 50)."""

    code = 50


class KernelError(SriovError):
    """The kernel refused a change (code 100)."""

    code = 100


class NetlinkError(KernelError):
    """An rtnetlink request was answered with an error.

    ``position`` is its place in the batch, counted from 0; ``results`` holds what every message of the batch
    was answered with, errors in their places.
    """

    def __init__(self, errno: int, extack: str = "", position: int = 0, operation: str = "") -> None:
        said = extack or os.strerror(errno)
        super().__init__(f"{operation or 'rtnetlink'}: {said}", errno=errno, extack=extack)
        self.position = position
        self.operation = operation
        self.results: list[object] = []


class BusyError(SriovError):
    """What was asked for belongs to somebody else: a VF in use, an interface already attached (code 101)."""

    code = 101


class IpamError(SriovError):
    """The IPAM plugin could not be run, or answered with what is no CNI result (code 102).

    A delegate's own, well-formed error keeps its code.
    """

    code = 102


class CheckError(SriovError):
    """CHECK found the pod's interface other than it was attached (code 103)."""

    code = 103
