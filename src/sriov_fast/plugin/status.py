"""STATUS: say whether an ADD can succeed."""

from __future__ import annotations

from sriov_fast.common.errors import SriovError, UnavailableError
from sriov_fast.kernel.backend import nl
from sriov_fast.plugin.add import vf_request_of
from sriov_fast.plugin.context import IPAM_WAIT, Reply
from sriov_fast.vf import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sriov_fast.plugin.context import Call


def status(call: Call) -> Reply:
    """Raise unless an ADD can be served (SPEC, "STATUS"); runtimes ask every few seconds."""
    conf = call.conf
    which = ", ".join(conf.masters) or conf.device_id
    try:
        with nl.Socket() as host:
            wanted = vf_request_of(call, host).replace(warn=call.log.debug)  # an ADD warns
            if conf.pf_only:
                from sriov_fast.vf import whole_pf  # late: few networks want a PF

                usable = whole_pf.any_usable(wanted)
            else:
                usable = select.any_usable(wanted)
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
        ipam.run("STATUS", call.wait(IPAM_WAIT), call.log.debug)
    return Reply()
