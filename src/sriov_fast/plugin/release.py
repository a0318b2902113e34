"""DEL, and the release of an attachment for GC, recovery and the undo of an ADD."""

from __future__ import annotations

from contextlib import ExitStack

from sriov_fast.common import executor
from sriov_fast.common.errors import DecodeError, HiddenError, RefusedError, SriovError
from sriov_fast.ipam.kinds import needs_interface
from sriov_fast.plugin.context import IPAM_WAIT, MOVES, Reply
from sriov_fast.vf import detach, driver_socket, modes
from sriov_fast.vf.journal import BROKEN, RETURNING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sriov_fast.common.executor import Scope, Task
    from sriov_fast.plugin.context import Call
    from sriov_fast.vf.journal import Attachment


def delete(call: Call) -> Reply:
    """Release an attachment (SPEC, "DEL"); a missing one is no error."""
    asked = call.request
    with call.owner_lock():
        record = call.journal.find(asked.container_id, asked.ifname)
        call.step("check, lock")
        if record is None:
            return _delete_unattached(call)
        if record.state == BROKEN:
            # All that is known is the VF and its owner. The journal keeps the record, and with it the VF.
            call.log.error(
                "the record is broken: the VF returns to the host, but stays reserved; see sriov-fast doctor",
                pci=record.pci,
            )
            return release(call, record)
        return release(call.as_added(record), record, defer=call.context.defer_release)


def _delete_unattached(call: Call) -> Reply:
    """Serve a DEL without a record, or with the record of a VF that could not be found."""
    asked = call.request
    stranded = call.journal.stranded(asked.container_id, asked.ifname)
    if stranded is None:
        theirs = _of_sriov_cni(call)
        if theirs is None:
            _release_addresses_alone(call)
        else:
            _release_theirs(call, theirs)
        return Reply()
    with call.vf_lock(stranded.pci):
        latest = call.journal.again(stranded)
        if latest is not None:
            recover(call, latest)
    return Reply()


def _of_sriov_cni(call: Call) -> Attachment | None:
    """Return the attachment that the SR-IOV CNI made, None if there is none or its file is not understood."""
    from sriov_fast.vf import sriov_cni_record  # late: an attachment of ours has a record

    try:
        return sriov_cni_record.find(call.request.container_id, call.request.ifname, call.roots)
    except DecodeError as error:
        call.log.error("the VF is not restored, only its address is released", why=error)
        return None


def _release_theirs(call: Call, record: Attachment) -> None:
    """Release an attachment of the SR-IOV CNI. Its files stay until VF and addresses are released.

    If the VF was given to another pod since, only the addresses are released.
    """
    from sriov_fast.vf import sriov_cni

    with call.vf_lock(record.pci):
        is_moved_on = record.pci in call.journal.taken() or sriov_cni.is_in_another_pod(
            record, call.request.netns, call.roots
        )
        if is_moved_on:
            call.log.warning("the VF is in another pod by now: it stays as it is", pci=record.pci)
            _release_addresses_alone(call)
        else:
            with _release_of(call, record) as vf:
                _release_both(call, vf)
        sriov_cni.forget(record, call.roots, released=not is_moved_on)
    call.log.info("released an attachment of the SR-IOV CNI", pf=record.pf, vf=record.vf, pci=record.pci)


def _release_addresses_alone(call: Call) -> None:
    """Run IPAM's DEL: IPAM may have given an address without a record of ours.

    IPAM gave none with files that root does not allow, so such a configuration keeps no pod from ending.
    """
    try:
        ipam = call.ipam()
        if ipam is not None:
            ipam.run("DEL", call.wait(IPAM_WAIT))
    except RefusedError as error:
        call.log.warning("nothing was attached with this configuration, which is refused", why=error)


def release(call: Call, record: Attachment, *, defer: bool = False) -> Reply:
    """Release VF and addresses. The record stays until both are released, so that DEL or GC can try again.

    With ``defer`` the VF returns to the host after the reply: that move waits in the kernel.
    """
    with ExitStack() as held:
        held.enter_context(call.vf_lock(record.pci))
        if not call.journal.has(record):
            return Reply()  # another request finished it meanwhile
        vf = held.enter_context(_release_of(call.unlimited() if defer else call, record))
        try:
            _release_both(call, vf, defer=defer)
        except HiddenError as error:
            if record.state == BROKEN:
                raise  # the record has not enough to finish this later
            _strand(call, record, error)
            return Reply()
        if not defer:
            _forget(call, record)
            return Reply()
        returning = call.journal.release(record)
        call.step("journal")
        later = held.pop_all()
    return Reply(afterwards=lambda: _bring_home_deferred(call, returning, vf, later))


def return_vf(call: Call, record: Attachment) -> None:
    """Return a VF to the host, without its addresses; no deadline applies."""
    with _release_of(call.unlimited(), record) as vf:
        vf.find()
        vf.quieten()
        vf.bring_home()


def _release_of(call: Call, record: Attachment) -> detach.Release:
    patience = driver_socket.Patience(call.ends)
    return modes.of(record).Release(record, call.pod_netns, call.roots, call.log, patience)


def _release_both(call: Call, vf: detach.Release, *, defer: bool = False) -> None:
    """Make the VF quiet, then release the addresses while the VF returns to the host.

    With ``defer`` only wait for IPAM; if IPAM fails, return the VF nevertheless. The caller has the VF's
    lock. An error of IPAM is raised last.
    """
    vf.find()
    with executor.Scope(threads=call.context.threads and vf.WAITS) as tasks:
        if needs_interface(call.conf.ipam_type):
            freeing = _release_addresses(call, tasks)
            freeing.join()
            vf.quieten()
            call.step("quieten", "kernel")
        else:
            vf.quieten()
            call.step("quieten", "kernel")
            freeing = _release_addresses(call, tasks)
            call.step("start IPAM", "ipam")
        if not (defer and freeing.succeeded()):
            vf.bring_home()
            call.step(vf.last_step, "kernel")
        freeing.result()
        call.step("wait for IPAM", "ipam")


def _release_addresses(call: Call, tasks: Scope) -> Task:
    """Submit IPAM's DEL."""
    ipam = call.ipam()
    if ipam is None:
        return executor.completed()
    return tasks.submit(lambda: ipam.run("DEL", call.wait(IPAM_WAIT)), waits=ipam.waits)


def _bring_home_deferred(call: Call, record: Attachment, vf: detach.Release, held: ExitStack) -> None:
    """Bring a quiet VF home after the reply; its lock is released then. An error is logged."""
    with held:
        try:
            MOVES.background(vf.bring_home)
            _forget(call, record)
        except (SriovError, OSError) as error:
            call.log.error(
                "the VF could not be returned to the host", pci=record.pci, pf=record.pf, why=error
            )


def forget(call: Call, record: Attachment) -> None:
    """Remove the record of an attachment that is released, and its device information file."""
    if record.device_info:
        from sriov_fast.plugin import device_info  # late: Multus asks for it, if a network says so

        device_info.remove(record, call.log)
    call.journal.remove(record)


def _forget(call: Call, record: Attachment) -> None:
    """Forget an attachment, and log that."""
    forget(call, record)
    call.log.info("released", pf=record.pf, vf=record.vf, pci=record.pci)


def _strand(call: Call, record: Attachment, why: HiddenError) -> None:
    """Leave a VF that cannot be found where it is: its link off, its record and its addresses kept.

    Until the VF is found it may answer for the addresses. Then ``recover`` brings it home and gives them
    back.
    """
    call.log.error("its VF and its address are kept until the VF is found", pci=record.pci, why=why)
    silent = record.replace(asked=record.asked.replace(link_state=detach.LINK_OFF.link_state))
    call.journal.write(silent)
    call.journal.strand(silent if modes.of(record).silence(record, call.log) else record)


def recover(call: Call, record: Attachment) -> bool:
    """Finish a request that was killed, or a DEL that did not find its VF; return whether the VF is home.

    The caller has the VF's lock. An error is logged.
    """
    if not record.stranded:
        call.log.warning(
            "a request was interrupted: returning its VF to the host first",
            pci=record.pci,
            state=record.state,
        )
    theirs = call.of(record)
    try:
        if record.state == RETURNING and not record.stranded:  # its addresses are given back already
            return_vf(theirs, record)
        else:
            with _release_of(theirs, record) as vf:
                _release_both(theirs, vf)
        _forget(theirs, record)
    except HiddenError as error:
        call.log.debug("still not found", pci=record.pci, why=error)
        return False
    except (SriovError, OSError) as error:
        call.log.error("the VF could not be returned to the host", pci=record.pci, pf=record.pf, why=error)
        return False
    return True
