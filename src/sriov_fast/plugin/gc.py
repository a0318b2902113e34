"""GC: release the attachments of a network that are not valid any more."""

from __future__ import annotations

from sriov_fast.common import json
from sriov_fast.plugin.context import IPAM_WAIT, Reply
from sriov_fast.plugin.release import recover, release
from sriov_fast.vf import fate
from sriov_fast.vf.journal import BROKEN, RETURNING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from sriov_fast.plugin.context import Call
    from sriov_fast.vf.journal import Attachment

VALID_ATTACHMENTS = "cni.dev/valid-attachments"


def collect(call: Call) -> Reply:
    """Release every attachment of this network that is not in the list of valid ones (SPEC, "GC").

    A failure does not prevent the release of the others; the first error is raised at the end.
    """
    faults: list[Exception] = []
    kept: list[tuple[str, str]] = []
    valid = set(call.conf.valid_attachments or ())
    for pci, entry in call.journal.entries().items():
        if entry.owner in valid and not entry.returning:
            continue  # a valid attachment of any network stays
        try:
            record = call.journal.read(pci, entry)
            if record is not None and record.state == BROKEN:
                kept.append(entry.owner)  # its network is not known
            elif record is not None and record.network == call.conf.name:
                _collect_one(call, record)
        except Exception as error:
            call.log.error("GC could not release", pci=pci, container=entry.owner[0], why=error)
            faults.append(error)
            kept.append(entry.owner)
    ipam = _sparing(call, [*kept, *_stranded(call)]).ipam()
    if ipam is not None:
        ipam.run("GC", call.wait(IPAM_WAIT), call.log.debug)
    if faults:
        raise faults[0]
    return Reply()


def _stranded(call: Call) -> list[tuple[str, str]]:
    """Return the owners of VFs that could not be found; their addresses may be in use."""
    entries = call.journal.entries().items()
    records = [call.journal.read(pci, entry) for pci, entry in entries if entry.returning]
    return [item.owner for item in records if item and item.stranded and item.network == call.conf.name]


def _sparing(call: Call, owners: Sequence[tuple[str, str]]) -> Call:
    """Return the GC with more attachments that IPAM must keep."""
    if not owners:
        return call
    more = [{"containerID": container_id, "ifname": ifname} for container_id, ifname in owners]
    raw = call.conf.raw | {VALID_ATTACHMENTS: [*(call.conf.raw.get(VALID_ATTACHMENTS) or ()), *more]}
    return call.replace(conf=call.conf.replace(raw=raw), request=call.request.replace(stdin=json.dumps(raw)))


def _collect_one(call: Call, record: Attachment) -> None:
    theirs = call.of(record)
    if record.state == RETURNING:
        with call.vf_lock(record.pci):
            still = call.journal.again(record)
            if still is not None and still.state == RETURNING:
                recover(theirs, still)
        return
    with theirs.owner_lock():
        still = call.journal.find(*record.owner)
        if still is not None:
            fate.require_sight(still, call.roots)
            release(theirs, still)
