"""Carrying out one request: from its configuration to its reply."""

from __future__ import annotations

import time
from contextlib import ExitStack

from sriov_fast.cni import config, response
from sriov_fast.common import json, log
from sriov_fast.common.errors import SriovError
from sriov_fast.ipam.kinds import may_choose_vf
from sriov_fast.plugin.context import Call, Context, Reply
from sriov_fast.vf.journal import Journal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sriov_fast.cni.config import NetConf
    from sriov_fast.cni.request import Request
    from sriov_fast.common.paths import Roots


def run(request: Request, roots: Roots, context: Context | None = None) -> Reply:
    """Carry out one verb; raises SriovError or OSError."""
    if request.command == "VERSION":
        return Reply(output=response.version_info(request.stdin))
    began = time.monotonic()
    context = context or Context()
    journal = Journal(roots.run, roots.proc)
    conf = _configuration(request, journal)
    with ExitStack() as closing:
        logger = log.Logger(conf.log_level, conf.log_file, _log_fields(request, conf), context.stderr)
        closing.callback(logger.close)
        for warning in conf.warnings:
            logger.warning(warning)
        call = Call(request=request, conf=conf, roots=roots, journal=journal, log=logger, context=context)
        limit = context.timeout if conf.timeout is None else conf.timeout
        if limit:
            call = call.replace(ends=began + limit)
        call.step("read the request")
        done = _verb(call)
    return done.replace(
        afterwards=_closing(done.afterwards, logger), undelivered=_closing(done.undelivered, logger)
    )


def _verb(call: Call) -> Reply:
    """Carry out the verb. Only its own modules are imported."""
    command = call.request.command
    if command == "ADD":
        from sriov_fast.plugin.add import add

        return add(call)
    if command == "DEL":
        from sriov_fast.plugin.release import delete

        return delete(call)
    if command == "CHECK":
        from sriov_fast.plugin.check import check

        return check(call)
    if command == "STATUS":
        from sriov_fast.plugin.status import status

        return status(call)
    from sriov_fast.plugin.gc import collect

    return collect(call)


def _configuration(request: Request, journal: Journal) -> NetConf:
    """Return the configuration; if that of a DEL cannot be read, the ADD's."""
    try:
        return config.parse(request, may_choose_vf)
    except SriovError as error:
        record = journal.find(request.container_id, request.ifname) if request.command == "DEL" else None
        if record is None or not record.request:
            raise
        conf = config.parse(request.replace(stdin=json.dumps(record.request["config"])), may_choose_vf)
        return conf.replace(warnings=(f"passed over: {error.msg}", *conf.warnings))


def _log_fields(request: Request, conf: NetConf) -> dict[str, str]:
    fields = {"command": request.command, "containerID": request.container_id, "netns": request.netns}
    fields |= {"ifname": request.ifname, "network": conf.name}
    return {key: value for key, value in fields.items() if value}


def _closing(work: Callable[[], object] | None, logger: log.Logger) -> Callable[[], None] | None:
    """Return the work after the reply, which may open the log file again, with the close of that file."""
    if work is None:
        return None

    def run_and_close() -> None:
        try:
            work()
        finally:
            logger.close()

    return run_and_close
