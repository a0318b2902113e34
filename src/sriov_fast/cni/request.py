"""The request of the runtime: the verb and its parameters (SPEC section 2, "Parameters")."""

from __future__ import annotations

import os

from sriov_fast.cni import fields
from sriov_fast.common import cni_args
from sriov_fast.common.errors import EnvError
from sriov_fast.common.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

VERBS = ("ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION")
_MAX_ID = 200  # 255 bytes of a file name, without the prefixes and suffixes of our files

# SPEC section 2, "CNI operations": the required variables of each verb.
_REQUIRED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
}


class Request(Record):
    """One call of the plugin.

    ``args`` has CNI_ARGS with keys in upper case, without those that are not given; ``args_text`` is CNI_ARGS
    unchanged. STATUS, GC and VERSION concern no attachment: they have no container, namespace, interface and
    ``args``. ``warnings`` names the arguments that a DEL skipped.
    """

    command: str
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    args: dict[str, str] = {}  # noqa: RUF012 (Record removes it from the class)
    args_text: str = ""
    path: tuple[str, ...] = ()
    stdin: bytes = b""
    warnings: tuple[str, ...] = ()


def read(environ: Mapping[str, str], stdin: bytes) -> Request:
    """Return the request in ``environ`` and ``stdin``, or raise EnvError that names the wrong variable."""
    command = _command(environ)
    text = environ.get("CNI_ARGS", "")
    path = tuple(_absolute(part) for part in environ.get("CNI_PATH", "").split(os.pathsep) if part)
    required = _REQUIRED.get(command)
    if required is None:
        return Request(command=command, args_text=text, path=path, stdin=stdin)
    _demand(environ, command, required)
    if command == "ADD":
        _demand_text(environ)
    args, warnings = _arguments(text, lenient=command == "DEL")
    return Request(
        command=command,
        container_id=_container_id(environ["CNI_CONTAINERID"]),
        netns=_netns(environ.get("CNI_NETNS", ""), lenient=command == "DEL"),
        ifname=_ifname(environ["CNI_IFNAME"]),
        args=args,
        args_text=text,
        path=path,
        stdin=stdin,
        warnings=warnings,
    )


def _absolute(directory: str) -> str:
    """Return a directory of CNI_PATH as the record keeps it, for a DEL of another process."""
    return directory if directory.startswith("/") else f"{os.getcwd()}/{directory}"


def _command(environ: Mapping[str, str]) -> str:
    command = environ.get("CNI_COMMAND", "")
    verbs = ", ".join(VERBS)
    if not command:
        raise EnvError("CNI_COMMAND is missing", f"a CNI runtime sets it to one of {verbs}")
    if command not in VERBS:
        raise EnvError(f"CNI_COMMAND={command!r:.120} is unknown", f"the verbs are {verbs}, in upper case")
    return command


def _demand(environ: Mapping[str, str], command: str, required: tuple[str, ...]) -> None:
    missing = [name for name in required if not environ.get(name)]
    if missing:
        raise EnvError(f"{command} needs {', '.join(missing)}", "set in the environment what is missing")


def _demand_text(environ: Mapping[str, str]) -> None:
    """Raise EnvError for text that the record could not hold for the DEL."""
    for name in ("CNI_NETNS", "CNI_ARGS", "CNI_PATH"):
        text = environ.get(name, "")
        if not fields.is_text(text):
            raise EnvError(f"{name}={text!r:.250} holds bytes that are no UTF-8", "use UTF-8")


def _container_id(text: str) -> str:
    fault = fields.name_fault(text)
    if not fault and len(text) > _MAX_ID:
        fault = f"longer than {_MAX_ID} characters"
    if fault:
        raise EnvError(
            f"CNI_CONTAINERID={text!r:.250}: {fault}",
            "a container ID starts with a letter or digit and holds letters, digits, '_', '.' and '-'",
        )
    return text


def _ifname(text: str) -> str:
    fault = fields.ifname_fault(text)
    if fault:
        advice = "name an interface: 1 to 15 bytes without '/', ':' and white space"
        raise EnvError(f"CNI_IFNAME={text!r:.120}: {fault}", advice)
    return text


def _netns(text: str, *, lenient: bool) -> str:
    if text.startswith("/") and "\0" not in text:
        return text
    if lenient:  # a DEL needs no namespace
        return ""
    advice = "give the namespace's path, such as /run/netns/pod"
    raise EnvError(f"CNI_NETNS={text!r:.250} is not an absolute path", advice)


def _arguments(text: str, *, lenient: bool) -> tuple[dict[str, str], tuple[str, ...]]:
    """Read CNI_ARGS. A DEL skips unreadable arguments with warnings: an ADD with them attached nothing."""
    if not text:
        return {}, ()
    if not lenient:
        return cni_args.parse(text), ()
    found, faults = cni_args.sift(text)
    return found, tuple(fault.msg for fault in faults)
