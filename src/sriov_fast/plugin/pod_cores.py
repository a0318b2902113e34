"""``"cores": "pod"``, also of ``rps`` and ``xps``: the exclusive cores of the pod.

kubelet's CPU manager (static policy) gives cores to the containers of a pod when it admits the pod, and
writes them to ``cpu_manager_state`` before it calls the runtime. Their cgroups are made later.
"""

from __future__ import annotations

from sriov_fast.cni import fields
from sriov_fast.common import json
from sriov_fast.common.errors import SriovError
from sriov_fast.common.json_object import FieldError, obj

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sriov_fast.plugin.context import Call


def resolve(call: Call) -> Call:
    """Return the call with the pod's exclusive cores; without any, log a warning and leave the interrupts."""
    cores: tuple[int, ...] = ()
    why: object = "the pod has none: kubelet's CPU manager must have the policy static, the pod whole CPUs"
    try:
        cores = _exclusive(
            call.request.args.get("K8S_POD_UID", ""), f"{call.roots.kubelet}/cpu_manager_state"
        )
    except (OSError, SriovError, FieldError) as error:
        why = error
    if not cores:
        call.log.warning('cores "pod": interrupts and queues stay as they are', why=why)
    conf = call.conf
    keys = [key for key in ("cores", "rps", "xps") if getattr(conf, key) == fields.POD_CORES]
    return call.replace(conf=conf.replace(**dict.fromkeys(keys, cores)))


def _exclusive(uid: str, path: str) -> tuple[int, ...]:
    """Return the cores of all containers of a pod, ascending."""
    if not uid:
        raise FieldError("CNI_ARGS have no K8S_POD_UID", "")
    with open(path, "rb") as file:
        state = obj(json.loads(file.read(), path))
    containers = obj(obj(state.get("entries") or {}).get(uid, {}))
    return tuple(sorted({core for cpus in containers.values() for core in fields.cpu_list(cpus)}))
