"""CHECK, STATUS and GC, and what is done after a crash."""

from __future__ import annotations

import os
from contextlib import ExitStack

from sriov_fast import codec, plugin
from sriov_fast.backend import nl
from sriov_fast.call import IPAM_WAIT, Call, Context, Reply
from sriov_fast.cni.netconf import NetConf
from sriov_fast.cni.request import Request
from sriov_fast.errors import CheckError, SriovError, UnavailableError
from sriov_fast.sriov import check, locks, netns, pool
from sriov_fast.sriov.journal import ATTACHED, HOMING, Journal
from sriov_fast.values import Route

VALID_ATTACHMENTS = "cni.dev/valid-attachments"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sriov_fast import log
    from sriov_fast.cni.result import Result
    from sriov_fast.sriov.journal import Attachment
    from sriov_fast.sriov.roots import Roots


def check_(call: Call) -> Reply:
    """Compare what is there with what was attached (SPEC, "CHECK")."""
    asked = call.request
    record = call.journal.find(asked.container_id, asked.ifname)
    if record is None:
        raise CheckError(
            f"container {asked.container_id} has no {asked.ifname} of ours",
            "it was never attached, or is deleted",
        )
    expected = _expected(call, record)
    ipam = call.as_added(record).ipam()
    if ipam is not None:
        ipam.run("CHECK", IPAM_WAIT)
    fd = netns.open_netns(asked.netns, call.context.netns_fd)
    try:
        check.check(expected, fd, call.roots)
    finally:
        os.close(fd)
    return Reply()


def _expected(call: Call, record: Attachment) -> Attachment:
    """Return the record as ``prevResult`` says that the ADD of the whole chain has left the attachment.

    A later plugin may have given the device another MAC or MTU, and have taken addresses and routes away.
    What ``prevResult`` does not say, such as the MTU before CNI 1.1.0, is not compared.
    """
    previous = call.conf.prev_result
    if previous is None or not previous.interfaces:
        return record
    for number, item in enumerate(previous.interfaces):
        if item.name == record.ifname and item.sandbox in (record.netns, call.request.netns):
            return record.replace(
                mac=item.mac or record.mac,
                mtu=_expected_mtu(record, item.mtu),
                addresses=_expected_addresses(record, previous, number),
                routes=_expected_routes(record, previous),
            )
    raise CheckError(
        f"prevResult: no interface {record.ifname!r} in {record.netns}",
        "the runtime's memory and ours differ; delete the pod and start it anew",
    )


def _expected_mtu(record: Attachment, listed: int) -> int:
    """Return the MTU to compare with, 0 for none.

    The tuning plugin changes the MTU and leaves that of the result, so an MTU that is listed as we printed it
    tells nothing, unless it is what the configuration asked for.
    """
    ours = record.mtu or record.before_mtu
    return listed if listed != ours else record.mtu


def _expected_addresses(record: Attachment, previous: Result, number: int) -> tuple[str, ...]:
    """Return the addresses that are listed for the interface; those listed for none if they are ours."""
    return tuple(
        item.address
        for item in previous.ips
        if item.interface == number or (item.interface is None and item.address in record.addresses)
    )


def _expected_routes(record: Attachment, previous: Result) -> tuple[dict[str, Any], ...]:
    """Return those of our routes that are listed; one that is listed with another gateway has that."""
    found = []
    for route in previous.routes:
        ours = [own for own in record.routes if own["dst"] == route.dst]
        same = [own for own in ours if route.gw in ("", own["gw"])]
        if ours and not same:
            same = [Route(dst=route.dst, gw=route.gw).as_dict()]
        found += same
    return tuple(found)


def status(call: Call) -> Reply:
    """Say whether an ADD can be served (SPEC, "STATUS"); asked every few seconds, so cheap."""
    conf = call.conf
    which = ", ".join(conf.masters) or conf.device_id
    try:
        with nl.Socket() as host:
            wish = plugin.wish_of(call, host).replace(warn=call.log.debug)  # an ADD warns
            usable = pool.any_usable(wish, call.journal, call.roots)
        why = f"no PF of {which} has a usable VF"
    except (OSError, SriovError) as error:
        usable, why = False, str(error)
    late_device = not conf.masters and not conf.device_id
    if not usable and not late_device:
        raise UnavailableError(
            why, "make VFs (sriov_numvfs), and see that their driver is bound; `sriov-fast vfs` shows them"
        )
    ipam = call.ipam()
    if ipam is not None:
        ipam.run("STATUS", IPAM_WAIT, call.log.debug)
    return Reply()


def collect(call: Call) -> Reply:
    """Release every attachment of this network that is not in the list of valid ones (SPEC, "GC").

    One that cannot be released does not keep the others; the first fault is raised in the end.
    """
    valid = call.conf.valid_attachments or ()
    faults: list[Exception] = []
    for record in call.journal.all():
        if record.network != call.conf.name or (record.owner in valid and record.state != HOMING):
            continue
        try:
            _collect_one(call, record)
        except Exception as error:
            call.log.error("GC could not release", pci=record.pci, container=record.container_id, why=error)
            faults.append(error)
    ipam = _sparing_stranded(call).ipam()
    if ipam is not None:
        ipam.run("GC", IPAM_WAIT, call.log.debug)
    if faults:
        raise faults[0]
    return Reply()


def _sparing_stranded(call: Call) -> Call:
    """Return the call with those attachments among the valid ones whose VF, and so address, may be in use."""
    stranded = [
        {"containerID": record.container_id, "ifname": record.ifname}
        for record in call.journal.all()
        if record.stranded and record.network == call.conf.name
    ]
    if not stranded:
        return call
    valid = [{"containerID": owner[0], "ifname": owner[1]} for owner in call.conf.valid_attachments or ()]
    raw = call.conf.raw | {VALID_ATTACHMENTS: valid + stranded}
    return call.replace(conf=call.conf.replace(raw=raw), request=call.request.replace(stdin=codec.dumps(raw)))


def _collect_one(call: Call, record: Attachment) -> None:
    theirs = call.of(record)
    if record.state == HOMING:
        with locks.acquire(call.roots.run, f"vf-{record.pci}", call.who):
            still = call.journal.again(record)
            if still is not None:
                plugin.recover(theirs, still)
        return
    with theirs.owner_lock():
        still = call.journal.find(*record.owner)
        if still is not None:
            plugin.release(theirs, still)


# --- after a crash


def repair(roots: Roots, logger: log.Logger) -> int:
    """Finish what requests left that were killed; return how many there were.

    Whoever is at work holds locks, and is left alone. The addresses are given back, too.
    """
    journal = Journal(roots.run, roots.proc)
    unfinished = [record for record in journal.all() if record.state != ATTACHED]
    return sum(_repair_one(_call_of(record, roots, journal, logger), record) for record in unfinished)


def _call_of(record: Attachment, roots: Roots, journal: Journal, logger: log.Logger) -> Call:
    given = record.request
    asked = Request(
        command="DEL",
        container_id=record.container_id,
        ifname=record.ifname,
        netns=record.netns,
        args_text=given.get("args", ""),
        path=tuple(given.get("path", ())),
        stdin=codec.dumps(given.get("config", {})),
    )
    conf = NetConf(
        version="1.1.0",
        name=record.network,
        raw=given.get("config", {}),
        ipam=given.get("config", {}).get("ipam"),
        ipam_type=record.ipam,
    )
    bound = logger.bind(command="repair", containerID=record.container_id, ifname=record.ifname)
    return Call(request=asked, conf=conf, roots=roots, journal=journal, log=bound, context=Context())


def _repair_one(call: Call, record: Attachment) -> bool:
    """Take both locks, if they are free, and finish; return whether there was something to finish."""
    with ExitStack() as held:
        asked = call.request
        names = [f"vf-{record.pci}"]
        if record.state != HOMING:
            names.insert(0, f"owner-{asked.container_id}~{asked.ifname}")
        for name in names:
            lock = locks.attempt(call.roots.run, name, call.who)
            if lock is None:
                return False
            held.enter_context(lock)
        still = call.journal.again(record)
        if still is None or still.state == ATTACHED:
            return False
        return plugin.recover(call, still)


VERBS: dict[str, Callable[[Call], Reply]] = {"CHECK": check_, "STATUS": status, "GC": collect}
