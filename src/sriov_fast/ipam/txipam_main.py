"""The executable ``txipam``, for plugins that delegate to it: environment and stdin in, JSON out.

It wires the packages ``cni`` and ``ipam``, as ``plugin`` does.
"""

from __future__ import annotations

import os

from sriov_fast.cni import config, request, response, result
from sriov_fast.common import json, paths
from sriov_fast.common.errors import SriovError
from sriov_fast.plugin import process
from sriov_fast.plugin.context import Reply

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sriov_fast.cni.request import Request
    from sriov_fast.ipam.txipam.plugin import TxIpam

_LONGEST = 60.0  # seconds; the configuration's ``timeout`` ends sooner


def main() -> None:
    """Serve one request and end the process; does not return."""
    process.serve(_answer)


def _answer(stdin: bytes) -> Reply:
    asked = request.read(os.environ, stdin)
    if asked.command == "VERSION":
        return Reply(output=response.version_info(stdin))
    conf = config.decode(asked.stdin)
    declared = config.declared_version(conf)
    version = config.spoken(asked.command, declared)
    ipam = _ipam(asked, conf)
    answer = ipam.run(asked.command, _LONGEST)
    if answer is None:
        return Reply()
    body = result.to_json(result.from_json(answer, version), version, bool(declared))
    body |= {"extra": answer["extra"]} if "extra" in answer else {}
    return Reply(output=json.dumps(body, indented=True) + b"\n", undelivered=lambda: _take_back(ipam))


def _ipam(asked: Request, conf: dict[str, Any]) -> TxIpam:
    from sriov_fast.ipam.keys import Keys  # late: VERSION and wrong calls need neither
    from sriov_fast.ipam.txipam.plugin import TxIpam

    roots = paths.from_environment()
    return TxIpam(
        keys=Keys(conf),
        container_id=asked.container_id,
        ifname=asked.ifname,
        args=asked.args_text,
        runtime_dir=roots.run,
        state_dir=roots.state,
    )


def _take_back(ipam: TxIpam) -> None:
    """Give an address back that nobody was told of."""
    try:
        ipam.run("DEL", _LONGEST)
    except (SriovError, OSError) as error:
        process.say(f"txipam: the address could not be given back: {error}")
