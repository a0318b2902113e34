"""The way of a VF home, from wherever it is, to what the journal says it was.

Serves DEL, GC and the undo of an ADD alike, so it supposes nothing: the VF may still be in the host, be in
the pod, be on its way back from a namespace that is gone, or not exist any more.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack

from sriov_fast.backend import nl
from sriov_fast.errors import NetlinkError
from sriov_fast.sriov import affinity, attach, device, locate, netns
from sriov_fast.values import Value, VfSettings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sriov_fast.log import Logger
    from sriov_fast.sriov.journal import Attachment
    from sriov_fast.sriov.locate import Place, Where
    from sriov_fast.sriov.roots import Roots
    from sriov_fast.values import Link

ZERO_MAC = "00:00:00:00:00:00"


def _nothing() -> None:
    """Do nothing."""


class _Job(Value):
    """What a release is about."""

    record: Attachment
    where: Where
    roots: Roots
    log: Logger
    when_quiet: Callable[[], None]


def release(
    record: Attachment,
    where: Where,
    roots: Roots,
    log: Logger,
    when_quiet: Callable[[], None] = _nothing,
) -> None:
    """Bring the VF home and make it what it was.

    ``when_quiet`` is called once the VF can send nothing more, before the move, which waits in the kernel:
    that is the moment to give the address back. Raises NetlinkError or OSError where the kernel refuses the
    move; what the driver refuses to restore is logged.
    """
    begin(record, where, roots, log, when_quiet)()


def begin(
    record: Attachment,
    where: Where,
    roots: Roots,
    log: Logger,
    when_quiet: Callable[[], None] = _nothing,
) -> Callable[[], None]:
    """Do the first half of ``release``: the VF can send nothing more. Return what does the other half.

    That one keeps the pod's namespace alive, so that it may be deleted in between. It must be called.
    """
    # first: an interrupt that is in use takes a mask that one whose device is down may only pretend to take
    _restore_irqs(record, roots, log)
    job = _Job(record=record, where=where, roots=roots, log=log, when_quiet=when_quiet)
    again = job.replace(when_quiet=_nothing)
    with ExitStack() as opened:
        host = opened.enter_context(nl.Socket())
        try:
            home = _quietened(host, job, opened)
        except NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise
            # it went between two steps: unplugged, or home by itself because its namespace ended
            home = _quietened(host, job, opened)
        kept = opened.pop_all()

    def rest() -> None:
        with kept:
            try:
                home()
            except NetlinkError as error:
                if error.errno != errno.ENODEV:
                    raise
                _quietened(host, again, kept)()

    return rest


def _restore_irqs(record: Attachment, roots: Roots, log: Logger) -> None:
    """Restore the masks that we set, of those interrupts that still are the VF's."""
    if record.pinned:
        affinity.apply(_original_masks(record, roots), roots, log)


def _original_masks(record: Attachment, roots: Roots) -> dict[int, str]:
    now = affinity.masks_of(record.pci, roots)
    return {n: mask for n, mask in record.irqs.items() if n in now and n in record.pinned}


def _settle_irqs(host: nl.Socket, job: _Job, name: str) -> None:
    """Restore the masks that did not stay because the VF came home down, by itself: up for a moment."""
    record = job.record
    masks = _original_masks(record, job.roots) if record.pinned else {}
    if not affinity.differing(masks, job.roots):
        return
    _bring_up(host, name, job.log)
    affinity.apply(masks, job.roots, job.log)
    _run(host, 0, name=name, up=False)


def _quietened(host: nl.Socket, job: _Job, opened: ExitStack) -> Callable[[], None]:
    """Make the VF quiet, wherever it is; return what brings it home."""
    record, log = job.record, job.log
    place = locate.find(record, job.where, job.roots, log)
    if place is None:
        log.warning("the VF has no network device any more", pci=record.pci, pf=record.pf, vf=record.vf)
        _let_go_of_mac(host, record)
        _restore_pf(host, record, log)
        job.when_quiet()
        return _nothing
    if place.pod:
        opened.callback(place.pod.close)
    quiet = _quieten(host, record, place, log)
    on_pf = _restore_pf(host, record, log)
    job.when_quiet()
    return lambda: _home(host, job, place, quiet, on_pf)


def _home(host: nl.Socket, job: _Job, place: Place, quiet: Link, on_pf: str | None) -> None:
    """Bring the quiet VF home, and make it what it was."""
    record, log = job.record, job.log
    name = _bring_home(host, job, place)
    if name:
        device.restore(host, record, name, log)
    if name and (record.asked.mac or _mac_changed(record, quiet)):
        _settle_mac(host, record, name, quiet, on_pf, log)
    if name:
        _settle_irqs(host, job, name)
    if name and record.before_up:
        _bring_up(host, name, log)


# --- putting it back


def _quieten(host: nl.Socket, record: Attachment, place: Place, log: Logger) -> Link:
    """Bring the device down, its MAC restored just before and its MTU after; return it as it is then.

    In this order a driver that resets the VF on the way down has nothing left of the pod's MAC.
    """
    index = place.link.index
    batch = nl.Batch()
    if record.asked.mac or _mac_changed(record, place.link):
        batch.set_link(index, mac=record.before_mac)
    required = [len(batch), -1] if place.link.up else [-1]  # what became of MAC and MTU is looked at
    _let_go_of_mac(host, record)
    if place.link.up:
        batch.set_link(index, up=False)
    device.strip(batch, record, place.link)
    if record.before_mtu not in (0, place.link.mtu):
        batch.set_link(index, mtu=record.before_mtu)
    if not len(batch):
        return place.link
    batch.get_link(index=index)
    answers = (place.pod or host).run(batch, check=False)
    for position in required:
        if isinstance(answers[position], NetlinkError):
            raise answers[position]
    link: Link = answers[-1]
    if record.before_mtu not in (0, link.mtu):
        log.warning("the VF keeps an MTU that it did not have", mtu=link.mtu, before=record.before_mtu)
    return link


def _let_go_of_mac(host: nl.Socket, record: Attachment) -> None:
    """Take the pod's MAC from the PF.

    One that showed the VF's own MAC is told 0, which lifts the hold that setting one put on the VF.
    """
    if record.asked.mac:
        own = record.before.mac in (None, record.before_mac)
        _set_vf(host, record, VfSettings(mac=ZERO_MAC if own else record.before.mac))


def _mac_changed(record: Attachment, link: Link) -> bool:
    """Say whether somebody, such as the pod, gave the device another MAC; only a whole record can tell."""
    return record.before_mac not in ("", link.mac)


def _original(record: Attachment) -> VfSettings:
    """Return what to tell the PF: of what we set, except the MAC, what was there before."""
    asked, before = record.asked, record.before
    back = {
        key: getattr(before, key)
        for key in ("spoofchk", "link_state", "trust", "min_tx_rate", "max_tx_rate")
        if getattr(asked, key) is not None
    }
    if asked.vlan is not None:
        back |= {"vlan": before.vlan or 0, "qos": before.qos or 0, "proto": before.proto}
    return attach.complete(VfSettings(**back), before)


def _restore_pf(host: nl.Socket, record: Attachment, log: Logger) -> str | None:
    """Restore the PF's side and return the MAC that it holds for the VF, None where that does not matter.

    What one driver refuses must not keep the rest from being restored.
    """
    whole = _original(record)
    batch = nl.Batch()
    if whole != attach.NOTHING:
        batch.set_vf(record.pf_index, record.vf, whole)
    if record.asked.mac:
        batch.get_link(index=record.pf_index, vf=record.vf)
    if not len(batch):
        return None
    answers = host.run(batch, check=False)
    if whole != attach.NOTHING and isinstance(answers[0], NetlinkError):
        _restore_one_by_one(host, record, whole, log)
    pf = answers[-1] if record.asked.mac else None
    return None if pf is None or isinstance(pf, NetlinkError) or pf.vf is None else pf.vf.mac


def _restore_one_by_one(host: nl.Socket, record: Attachment, whole: VfSettings, log: Logger) -> None:
    for part in _parts(whole):
        failed = _set_vf(host, record, part)
        if failed:
            log.warning("the PF refuses to restore", pf=record.pf, vf=record.vf, what=part, why=failed.msg)


def _parts(whole: VfSettings) -> list[VfSettings]:
    given = {key: value for key, value in whole.as_dict().items() if value is not None}
    together = [("vlan", "qos", "proto"), ("min_tx_rate", "max_tx_rate")]
    together += [(key,) for key in ("spoofchk", "link_state", "trust")]
    parts = ({key: given[key] for key in keys if key in given} for keys in together)
    return [VfSettings(**part) for part in parts if part]


def _set_vf(host: nl.Socket, record: Attachment, settings: VfSettings) -> NetlinkError | None:
    batch = nl.Batch()
    batch.set_vf(record.pf_index, record.vf, settings)
    answer = host.run(batch, check=False)[0]
    return answer if isinstance(answer, NetlinkError) else None


def _run(socket: nl.Socket, index: int, **change: object) -> None:
    batch = nl.Batch()
    batch.set_link(index, **change)  # type: ignore[arg-type]
    socket.run(batch)


def _bring_up(host: nl.Socket, name: str, log: Logger) -> None:
    """Bring the device up; a driver that refuses, as with its PF down, must not fail the DEL for ever."""
    try:
        _run(host, 0, name=name, up=True)
    except NetlinkError as error:
        log.warning("the VF cannot be brought up", interface=name, why=error.msg)


def _bring_home(host: nl.Socket, job: _Job, place: Place) -> str:
    """Move the device to our namespace, under its old name; return the name, "" if none is known."""
    record = job.record
    try:
        if place.pod:
            _move_home(place.pod, place.link.index, record.host_name, job.where.home)
        elif record.host_name not in ("", place.link.name):
            _run(host, place.link.index, name=record.host_name)
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise
        return _home_under_another_name(job, place.pod)
    return record.host_name


def _move_home(pod: nl.Socket, index: int, name: str, home: int) -> None:
    here = netns.own(home)
    try:
        _run(pod, index, netns_fd=here, name=name)
    finally:
        os.close(here)


def _home_under_another_name(job: _Job, pod: nl.Socket | None) -> str:
    """Leave the name to the device that has it; the kernel may have moved the VF before it saw that."""
    record = job.record
    left = locate.link_in(pod, record) if pod else None
    if pod and left:
        _move_home(pod, left.index, "dev%d", job.where.home)
    link = locate.link_in_host(record, job.roots)
    now = link.name if link else ""
    job.log.error("another device has the VF's name", name=record.host_name, now=now, pci=record.pci)
    return now


def _settle_mac(  # noqa: PLR0913, PLR0917
    host: nl.Socket, record: Attachment, name: str, quiet: Link, on_pf: str | None, log: Logger
) -> None:
    """Correct, by the slower way, what is not as before: the PF's MAC, the device's, that of its reset."""
    if record.asked.mac and record.before.mac and on_pf != record.before.mac:
        _set_vf(host, record, VfSettings(mac=record.before.mac))
    if (quiet.mac, quiet.perm) == (record.before_mac, record.before_perm):
        return
    look = nl.Batch()
    look.get_link(name=name)
    index = host.run(look)[0].index
    attach.adopt_mac(host, index, record.before_mac)
    now: Link = host.run(look)[0]
    if now.mac != record.before_mac and record.before.mac not in (None, record.before_mac):
        _adopt_against_pf(host, record, index)
        now = host.run(look)[0]
    if now.mac != record.before_mac:
        log.warning("the VF keeps a MAC that it did not have", mac=now.mac, before=record.before_mac)


def _adopt_against_pf(host: nl.Socket, record: Attachment, index: int) -> None:
    """Give the device back a MAC that is not the one which the PF held for it, and had not imposed yet.

    The PF's MAC goes and comes back last; the second reset is for the device's memory of the first.
    """
    _set_vf(host, record, VfSettings(mac=ZERO_MAC))
    for _ in range(2):
        attach.adopt_mac(host, index, record.before_mac)
    _set_vf(host, record, VfSettings(mac=record.before.mac))
