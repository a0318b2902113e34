"""The executable ``txipam``, for plugins that delegate to it: environment and stdin in, JSON out.

It wires the packages ``cni`` and ``ipam``, as ``plugin`` does.
"""

from __future__ import annotations

import os

from sriov_fast.cni import config, request, response
from sriov_fast.common import json
from sriov_fast.common.errors import SriovError, VersionError
from sriov_fast.plugin import process
from sriov_fast.plugin.context import Reply

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sriov_fast.cni.request import Request
    from sriov_fast.ipam.txipam.plugin import TxIpam

_SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
_LONGEST = 60.0  # seconds; the configuration's ``timeout`` ends sooner


def main() -> None:
    """Serve one request and end the process; does not return."""
    process.serve(_answer)


def _answer(stdin: bytes) -> Reply:
    asked = request.read(os.environ, stdin)
    if asked.command == "VERSION":
        return Reply(output=response.version_info(stdin))
    ipam = _ipam(asked)
    output = _document(ipam.run(asked.command, _LONGEST), ipam.keys.obj)
    undo = (lambda: _take_back(ipam)) if asked.command == "ADD" else None
    return Reply(output=output, undelivered=undo)


def _ipam(asked: Request) -> TxIpam:
    from sriov_fast.ipam.keys import Keys  # late: VERSION and wrong calls need neither
    from sriov_fast.ipam.txipam.plugin import TxIpam

    conf = config.decode(asked.stdin)
    _demand_version(asked.command, config.declared_version(conf))
    return TxIpam(
        keys=Keys(conf),
        container_id=asked.container_id,
        ifname=asked.ifname,
        args=asked.args_text,
        runtime_dir=os.environ.get("SRIOV_FAST_RUN") or "/run/sriov-fast",
        state_dir=os.environ.get("SRIOV_FAST_STATE") or "/var/lib/sriov-fast",
    )


def _demand_version(command: str, declared: str) -> None:
    """Raise where we do not speak a version, or it has no such verb; none is 0.1.0."""
    supported = f"supported: {', '.join(config.VERSIONS)}"
    if declared and declared not in config.VERSIONS:
        raise VersionError(f"cniVersion = {declared!r:.40}: not supported", supported)
    since = _SINCE.get(command, "")
    if since and config.VERSIONS.index(declared or "0.1.0") < config.VERSIONS.index(since):
        raise VersionError(
            f"cniVersion = {declared!r}: {command} is not in it, only from {since} on",
            f"raise cniVersion in the configuration; {supported}",
        )


def _document(answer: dict[str, Any] | None, config: dict[str, Any]) -> bytes:
    """Return the output. A configuration without a version gets a result without one."""
    if answer is None:
        return b""
    shown = {key: value for key, value in answer.items() if key != "cniVersion" or config.get(key)}
    return json.dumps(shown, indented=True) + b"\n"


def _take_back(ipam: TxIpam) -> None:
    """Give an address back that nobody was told of."""
    try:
        ipam.run("DEL", _LONGEST)
    except (SriovError, OSError) as error:
        process.say(f"txipam: the address could not be given back: {error}")
