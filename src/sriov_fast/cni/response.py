"""The output on stdout: a result, an error or the versions (SPEC section 5), always one JSON object."""

from __future__ import annotations

import errno as errnos
import os

from sriov_fast.cni import config, result
from sriov_fast.common import json
from sriov_fast.common.errors import FileError, SriovError, TryAgainError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NEWEST = config.VERSIONS[-1]
_INTERNAL = SriovError.code
_LONGEST = 4000  # characters of msg, and of details: the texts of a remote service may be long
_UNREADABLE = "see that the files of sriov-fast and its interpreter can be read; run sriov-fast install again"
_NO_MEMORY = "try again; the machine has no memory left"
_REPORT = "this is a fault of sriov-fast; please report it with the log"


def _document(obj: object) -> bytes:
    return json.dumps(obj, indented=True) + b"\n"


def _clean(text: str) -> str:
    """Return text that is valid Unicode; the environment can hold bytes that are not."""
    return text.encode("utf-8", "backslashreplace").decode()


def success(found: result.Result, conf: config.NetConf) -> bytes:
    """Return an ADD's reply in the version of the configuration."""
    return _document(result.to_json(found, conf.version, bool(conf.cni_version)))


def error(exc: BaseException, version: str) -> bytes:
    """Return the error object for an exception (SPEC, "Error"). No other module makes one.

    KeyboardInterrupt and SystemExit are raised again.
    """
    if isinstance(exc, SriovError):
        code, msg, details = exc.code, exc.msg, _known_details(exc)
    elif isinstance(exc, OSError):
        code, msg, details = FileError.code, _os_message(exc), _errno_words(exc.errno or 0)
    elif isinstance(exc, ImportError):
        code, msg, details = FileError.code, f"a module cannot be loaded: {exc}", _UNREADABLE
    elif isinstance(exc, MemoryError):
        code, msg, details = TryAgainError.code, "out of memory", _NO_MEMORY
    elif isinstance(exc, Exception):
        code, msg, details = _INTERNAL, f"internal error: {_described(exc)}", _REPORT
    else:
        raise exc
    body: dict[str, Any] = {
        "cniVersion": version or NEWEST,
        "code": code,
        "msg": _clean(msg)[:_LONGEST] or "unknown error",
    }
    if details:
        body["details"] = _clean(details)[:_LONGEST]
    return _document(body)


def is_internal(exc: BaseException) -> bool:
    """Return whether an exception is a fault of this program, to be reported with a traceback."""
    return not isinstance(exc, (SriovError, OSError, ImportError, MemoryError))


def _described(exc: Exception) -> str:
    try:
        words = str(exc)
    except Exception:
        words = ""
    return f"{type(exc).__name__}: {words}" if words else type(exc).__name__


def _errno_words(number: int) -> str:
    if not number:
        return ""
    return f"{errnos.errorcode.get(number, number)} ({os.strerror(number)})"


def _known_details(exc: SriovError) -> str:
    """Return the advice, and behind it the facts that the error carries."""
    facts = []
    if exc.interface:
        facts.append(f"interface {exc.interface}")
    if exc.vf >= 0:
        facts.append(f"VF {exc.vf}")
    if exc.errno:
        facts.append(f"errno {_errno_words(exc.errno)}")
    if exc.extack and exc.extack not in exc.msg:
        facts.append(f"the kernel said: {exc.extack}")
    return "; ".join(part for part in (exc.details, ", ".join(facts)) if part)


def _os_message(exc: OSError) -> str:
    files = [os.fsdecode(name) for name in (exc.filename, exc.filename2) if isinstance(name, (str, bytes))]
    words = exc.strerror or str(exc) or type(exc).__name__
    return f"{' -> '.join(files)}: {words}" if files else words


def spoken_version(stdin: bytes) -> str:
    """Return the version for an error about a configuration that could not be parsed; never raises."""
    try:
        declared = config.declared_version(config.decode(stdin))
    except SriovError:
        return NEWEST
    if not declared:
        return "0.1.0"
    return declared if declared in config.VERSIONS else NEWEST


_told: dict[bytes, bytes] = {}  # answers by request; runtimes send one or two different ones
_MOST_TOLD = 16
_LARGEST_TOLD = 256  # bytes


def version_info(stdin: bytes = b"") -> bytes:
    """Return the VERSION reply: the request's version and the supported ones (SPEC, "Version")."""
    found = _told.get(stdin)
    if found is None:
        found = _version_info(stdin)
        if len(stdin) <= _LARGEST_TOLD and len(_told) < _MOST_TOLD:
            _told[stdin] = found
    return found


def _version_info(stdin: bytes) -> bytes:
    declared = ""
    if stdin.strip():
        declared = config.declared_version(config.decode(stdin, "the VERSION request"))
    return _document({"cniVersion": declared or NEWEST, "supportedVersions": list(config.VERSIONS)})
