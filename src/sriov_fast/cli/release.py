"""``sriov-fast release``: do the DEL of a pod that ended without one."""

from __future__ import annotations

import argparse

from sriov_fast.cli import output
from sriov_fast.common import log, paths
from sriov_fast.common.errors import BusyError, SriovError
from sriov_fast.common.paths import Roots
from sriov_fast.plugin import recovery
from sriov_fast.plugin import release as plugin_release
from sriov_fast.vf import fate
from sriov_fast.vf.journal import BROKEN, RETURNING, Attachment, Journal

SUMMARY = "release the VF and the address of a container that ended without a DEL"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "container", metavar="CONTAINER", help="the container's ID, as `sriov-fast vfs` shows it"
    )
    parser.add_argument(
        "ifname", nargs="?", default="", metavar="IFNAME", help="one interface (default: all)"
    )
    parser.add_argument("--force", action="store_true", help="also if the pod's namespace may still exist")
    output.add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Release each attachment of the container; the first error is raised at the end."""
    roots = paths.from_environment()
    records = [
        record
        for record in Journal(roots.run, roots.proc).all()
        if record.container_id == args.container and args.ifname in ("", record.ifname)
    ]
    if not records:
        raise SriovError(f"no VF belongs to {' '.join(filter(None, (args.container, args.ifname)))}")
    released: list[Attachment] = []
    faults: list[SriovError | OSError] = []
    for record in records:
        try:
            release(record, roots, force=args.force)
        except (SriovError, OSError) as error:
            faults.append(error)
            continue
        released.append(record)
        if not args.json:
            print(f"VF {record.pci} of {'/'.join(record.owner)} is released")
    if args.json:
        output.print_json([_plain(record) for record in released])
    if faults:
        raise faults[0]


def _plain(record: Attachment) -> dict[str, str]:
    return {"pci": record.pci, "containerID": record.container_id, "ifname": record.ifname}


def release(record: Attachment, roots: Roots, *, force: bool = False) -> None:
    """Release an attachment as its own DEL would. Raises BusyError unless its pod's namespace is gone.

    Any other error is that of the release: the record stays then, and a repetition can finish.
    """
    if record.state == BROKEN:
        raise BusyError(
            f"VF {record.pci} stays with {record.container_id}, {record.ifname}: the record is broken",
            "`sriov-fast doctor` shows the fault and how to mend it",
        )
    journal = Journal(roots.run, roots.proc)
    call = recovery.call_of(record, roots, journal, log.Logger("warning"))
    with call.owner_lock():
        latest = journal.again(record)
        if latest is None:
            return  # released by a DEL or a GC meanwhile
        if latest.state == RETURNING:
            recovery.repair_one(call, latest)
        else:
            _demand_end(latest, roots, force=force)
            plugin_release.release(call, latest)
        if any(left.pci == record.pci for left in journal.returning(*record.owner)):
            raise BusyError(
                f"VF {record.pci} of {'/'.join(record.owner)} is not released yet: "
                "it is in a namespace that is not found, or another request returns it",
                "it comes back when that namespace ends; see which process or container holds the namespace",
            )


def _demand_end(record: Attachment, roots: Roots, *, force: bool) -> None:
    """Raise BusyError unless the pod's namespace is gone, or with ``force``."""
    state = fate.of(record, roots)
    if not state.gone and not force:
        raise BusyError(
            f"VF {record.pci} stays with container {record.container_id}, {record.ifname}: {state.why}",
            "delete the pod; --force releases the VF all the same",
            interface=record.ifname,
            vf=record.vf,
        )
