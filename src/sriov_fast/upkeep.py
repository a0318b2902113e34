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
from sriov_fast.sriov.journal import ATTACHED, BROKEN, HOMING, Journal
from sriov_fast.values import Route

VALID_ATTACHMENTS = "cni.dev/valid-attachments"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
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
    if record.state == BROKEN:
        raise CheckError(
            f"container {asked.container_id}, {asked.ifname}: the record of VF {record.pci} is broken",
            "`sriov-fast doctor` shows what is wrong with it; delete the pod and start it anew",
            interface=asked.ifname,
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
    faults: list[Exception] = []
    kept: list[tuple[str, str]] = []
    for pci, entry in call.journal.entries().items():
        try:
            record = call.journal.read(pci, entry)
            if record is not None and record.state == BROKEN:
                kept.append(entry.owner)  # nobody knows of which network it is
            elif record is not None and _is_stale(call, record):
                _collect_one(call, record)
        except Exception as error:
            call.log.error("GC could not release", pci=pci, container=entry.owner[0], why=error)
            faults.append(error)
            kept.append(entry.owner)
    ipam = _sparing(call, [*kept, *_stranded(call)]).ipam()
    if ipam is not None:
        ipam.run("GC", IPAM_WAIT, call.log.debug)
    if faults:
        raise faults[0]
    return Reply()


def _is_stale(call: Call, record: Attachment) -> bool:
    """Say whether a GC is to release an attachment, or to finish its VF's way home."""
    valid = call.conf.valid_attachments or ()
    return record.network == call.conf.name and (record.owner not in valid or record.state == HOMING)


def _stranded(call: Call) -> list[tuple[str, str]]:
    """Return the owners of VFs that could not be found: the addresses may be in use."""
    records = call.journal.all()
    return [record.owner for record in records if record.stranded and record.network == call.conf.name]


def _sparing(call: Call, owners: Sequence[tuple[str, str]]) -> Call:
    """Return the GC with more attachments among those that IPAM must spare."""
    if not owners:
        return call
    more = [{"containerID": container_id, "ifname": ifname} for container_id, ifname in owners]
    raw = call.conf.raw | {VALID_ATTACHMENTS: [*(call.conf.raw.get(VALID_ATTACHMENTS) or ()), *more]}
    return call.replace(conf=call.conf.replace(raw=raw), request=call.request.replace(stdin=codec.dumps(raw)))


def _collect_one(call: Call, record: Attachment) -> None:
    theirs = call.of(record)
    if record.state == HOMING:
        with locks.acquire(call.roots.run, f"vf-{record.pci}", call.who):
            still = call.journal.again(record)
            if still is not None and still.state == HOMING:
                plugin.recover(theirs, still)
        return
    with theirs.owner_lock():
        still = call.journal.find(*record.owner)
        if still is not None:
            plugin.release(theirs, still)


# --- after a crash


def repair(roots: Roots, logger: log.Logger) -> int:
    """Finish what requests left that were killed; return how many there were.

    Whoever is at work holds locks, and is left alone. The addresses are given back, too. A record that cannot
    be read, or whose VF cannot be brought home, does not keep the others.
    """
    journal = Journal(roots.run, roots.proc)
    found, broken = 0, False
    for pci, entry in journal.entries().items():
        try:
            record = journal.read(pci, entry)
            if record is not None and record.state == BROKEN:
                broken = True
            elif record is not None and record.state != ATTACHED:
                found += repair_one(call_of(record, roots, journal, logger), record)
        except Exception as error:
            logger.error("what was cut short could not be finished", pci=pci, why=error)
    if broken:
        _tell_of_faults(journal, logger)
    _drop_drafts(journal, roots)
    return found


_told: set[tuple[str, str]] = set()  # the faults that this process has told of


def _tell_of_faults(journal: Journal, logger: log.Logger) -> None:
    """Log each broken record once; it keeps its VF from being given away, and nothing else."""
    for fault in journal.faults():
        if (fault.path, fault.why) not in _told:
            _told.add((fault.path, fault.why))
            logger.error("a record is broken, and its VF is kept aside", pci=fault.pci, why=fault.why)


def _drop_drafts(journal: Journal, roots: Roots) -> None:
    """Remove the drafts of ADDs that were killed: those of VFs whose lock nobody has."""
    for pci in journal.drafts():
        lock = locks.attempt(roots.run, f"vf-{pci}", "repair")
        if lock is not None:
            with lock:
                journal.drop_draft(pci)


def call_of(record: Attachment, roots: Roots, journal: Journal, logger: log.Logger) -> Call:
    """Return the DEL that would release a record, made of the record alone."""
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


def repair_one(call: Call, record: Attachment) -> bool:
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
        if still is None or still.state in (ATTACHED, BROKEN):
            return False
        return plugin.recover(call, still)


VERBS: dict[str, Callable[[Call], Reply]] = {"CHECK": check_, "STATUS": status, "GC": collect}
