"""Recovery after a crash: finish the requests that were killed."""

from __future__ import annotations

from contextlib import ExitStack

from sriov_fast.cni.config import NetConf
from sriov_fast.cni.request import Request
from sriov_fast.plugin.context import Call, Context
from sriov_fast.plugin.release import recover
from sriov_fast.vf import locks
from sriov_fast.vf.journal import ATTACHED, BROKEN, RETURNING, Journal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sriov_fast.common import log
    from sriov_fast.common.paths import Roots
    from sriov_fast.vf.journal import Attachment


def repair(roots: Roots, logger: log.Logger) -> int:
    """Finish the requests that were killed, with IPAM's DEL; return how many there were.

    A request that still runs holds a lock, and is skipped. A record that cannot be read, or with a VF
    that cannot be returned to the host, does not prevent the recovery of the others.
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
            logger.error("an interrupted request could not be finished", pci=pci, why=error)
    if broken:
        _tell_of_faults(journal, logger)
    _drop_drafts(journal, roots)
    return found


_told: set[tuple[str, str]] = set()  # the faults that this process has logged


def _tell_of_faults(journal: Journal, logger: log.Logger) -> None:
    """Log each broken record once; such a record only reserves its VF."""
    for fault in journal.faults():
        if (fault.path, fault.why) not in _told:
            _told.add((fault.path, fault.why))
            logger.error("a record is broken, and its VF is kept aside", pci=fault.pci, why=fault.why)


def _drop_drafts(journal: Journal, roots: Roots) -> None:
    """Remove the drafts of ADDs that were killed: the VF's lock is free."""
    for pci in journal.drafts():
        lock = locks.attempt(roots.run, f"vf-{pci}", "repair")
        if lock is not None:
            with lock:
                journal.drop(pci)


def call_of(record: Attachment, roots: Roots, journal: Journal, logger: log.Logger) -> Call:
    """Return a DEL of a record, made of the record alone."""
    bound = logger.bind(command="repair", containerID=record.container_id, ifname=record.ifname)
    conf = NetConf(version="1.1.0", name=record.network)
    call = Call(
        request=Request(command="DEL"), conf=conf, roots=roots, journal=journal, log=bound, context=Context()
    )
    return call.of(record)


def repair_one(call: Call, record: Attachment) -> bool:
    """Take the locks, if they are free, and finish the request; return whether its VF is home."""
    with ExitStack() as held:
        asked = call.request
        names = [f"vf-{record.pci}"]
        if record.state != RETURNING:
            names.insert(0, f"owner-{asked.container_id}~{asked.ifname}")
        for name in names:
            lock = locks.attempt(call.roots.run, name, call.who)
            if lock is None:
                return False
            held.enter_context(lock)
        still = call.journal.again(record)
        if still is None or still.state in (ATTACHED, BROKEN):
            return False
        return recover(call, still)
