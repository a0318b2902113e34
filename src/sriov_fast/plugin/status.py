"""STATUS: say whether an ADD can succeed."""

from __future__ import annotations

from sriov_fast.common.errors import SriovError, UnavailableError
from sriov_fast.kernel.backend import nl
from sriov_fast.plugin.add import vf_request_of
from sriov_fast.plugin.context import IPAM_WAIT, Reply
from sriov_fast.vf import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

    from sriov_fast.plugin.context import Call


def _chooser(call: Call) -> ModuleType:
    if not call.conf.pf_only:
        return select
    from sriov_fast.vf import whole_pf  # late: few networks want a PF

    return whole_pf


def status(call: Call) -> Reply:
    """Raise unless an ADD can be served (SPEC, "STATUS"); runtimes ask every few seconds."""
    conf = call.conf
    which = ", ".join(conf.masters) or conf.device_id
    try:
        with nl.Socket() as host:
            vf_request = vf_request_of(call, host).replace(warn=call.log.debug)  # an ADD warns
            usable = _chooser(call).any_usable(vf_request, call.journal, call.roots)
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
