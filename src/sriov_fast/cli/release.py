"""``sriov-fast release``: what the DEL would have done of a pod that ended without one."""

from __future__ import annotations

import argparse
import sys

from sriov_fast.common import log, paths
from sriov_fast.common.errors import BusyError, SriovError
from sriov_fast.common.paths import Roots
from sriov_fast.plugin import recovery
from sriov_fast.plugin import release as plugin_release
from sriov_fast.vf import fate
from sriov_fast.vf.journal import BROKEN, RETURNING, Attachment, Journal


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``release``."""
    summary = "release the VF and the address of a container that ended without a DEL"
    parser = subparsers.add_parser("release", help=summary, description=summary)
    parser.add_argument(
        "container", metavar="CONTAINER", help="the container's ID, as `sriov-fast vfs` shows it"
    )
    parser.add_argument(
        "ifname", nargs="?", default="", metavar="IFNAME", help="one interface (default: all)"
    )
    parser.add_argument(
        "--force", action="store_true", help="also where the pod's namespace may still be there"
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    here = paths.from_environment()
    try:
        records = [
            record
            for record in Journal(here.run, here.proc).all()
            if record.container_id == args.container and args.ifname in ("", record.ifname)
        ]
        if not records:
            which = " ".join(filter(None, (args.container, args.ifname)))
            print(f"sriov-fast release: no VF belongs to {which}", file=sys.stderr)
            return 1
        for record in records:
            release(record, here, force=args.force)
            print(f"VF {record.pci} of {'/'.join(record.owner)} is released")
    except (OSError, SriovError) as error:
        details = getattr(error, "details", "")
        print(f"sriov-fast release: {error}{f' ({details})' if details else ''}", file=sys.stderr)
        return 1
    return 0


def release(record: Attachment, here: Roots, *, force: bool = False) -> None:
    """Release an attachment as its own DEL would; BusyError unless its pod's namespace is gone.

    Any other error is that of the release: the record stays then, and a repetition can finish.
    """
    if record.state == BROKEN:
        raise BusyError(
            f"VF {record.pci} stays with {record.container_id}, {record.ifname}: the record is broken",
            "`sriov-fast doctor` shows what is wrong with it, and what to do",
        )
    journal = Journal(here.run, here.proc)
    call = recovery.call_of(record, here, journal, log.Logger("warning"))
    with call.owner_lock():
        still = journal.again(record)
        if still is None:
            return  # its DEL or a GC has come meanwhile
        if still.state == RETURNING:
            recovery.repair_one(call, still)
            return
        found = fate.of(still, here)
        if not found.gone and not force:
            raise BusyError(
                f"VF {still.pci} stays with container {still.container_id}, {still.ifname}: {found.why}",
                "delete the pod; --force releases the VF all the same",
                interface=still.ifname,
                vf=still.vf,
            )
        plugin_release.release(call, still)
