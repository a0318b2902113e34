"""A simulation of Multus: the arguments and configurations that its delegates get.

The requests are those of pkg/multus/multus.go and pkg/types/conf.go in Multus 4.3. libcni encodes the
configuration again, with sorted keys and without spaces, and adds the result of the ADD at CHECK and DEL.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.runtime import Outcome
from harness.veth import Node

UID = "f0bfbd5b-096d-48ef-998c-da26743dd0cb"
NAMESPACED = "default/sriov-net"  # the NetworkAttachmentDefinition


def given(pod: str, sandbox: bool = True) -> str:
    """Return the CNI_ARGS of containerd; those of CRI-O differ only in their order."""
    head = f"K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID={pod if sandbox else ''}"
    return f"{head};K8S_POD_UID={UID}"


def thin(pod: str) -> str:
    """Return the CNI_ARGS of a delegate of the thin plugin, which appends the CNI_ARGS that it got itself."""
    return f"IgnoreUnknown=true;{given(pod)};IgnoreUnknown=1;{given(pod)}"


def thick(pod: str) -> str:
    """Return the CNI_ARGS of a delegate of the thick plugin; its daemon does not know the sandbox."""
    return f"IgnoreUnknown=true;{given(pod, sandbox=False)}"


ARGUMENTS = {"thin": thin, "thick": thick}


class Delegate(NamedTuple):
    """One attachment: its interface, its configuration, and its device ("" for a VF from the pool)."""

    ifname: str
    conf: dict[str, Any]
    device: str


class Multus:
    """One pod's delegates on one network. The default network has the index 0 and is not simulated.

    ``form`` is "thin" or "thick". ``netns`` is the value of CNI_NETNS, as the runtime gives it.
    """

    def __init__(self, node: Node, pod: str, form: str) -> None:
        self._node = node
        self._pod = pod
        self._args = ARGUMENTS[form](pod)
        own = "/opt/cni/bin"
        self._path = f"{own}:{node.search}" if form == "thin" else own
        self._delegates: list[Delegate] = []
        self._results: dict[str, Any] = {}  # by interface
        self.netns = f"/run/netns/{pod}"

    def attach(self, network: dict[str, Any], devices: Sequence[str]) -> list[Outcome]:
        """Execute the ADDs of all devices concurrently; "" is a VF from the pool."""
        self._delegates = [
            Delegate(f"net{number}", network | {"deviceID": device, "pciBusID": device}, device)
            if device
            else Delegate(f"net{number}", network, "")
            for number, device in enumerate(devices, 1)
        ]
        started = [self._start("ADD", each) for each in self._delegates]
        done = [self._node.finish(process) for process in started]
        for each, outcome in zip(self._delegates, done, strict=True):
            if outcome.status == 0:
                self._results[each.ifname] = outcome.json
        return done

    def check(self) -> list[Outcome]:
        """Execute CHECK for every attachment."""
        return [self._node.finish(self._start("CHECK", each)) for each in self._delegates]

    def detach(self) -> list[Outcome]:
        """Execute DEL for every attachment, the last one first; a repetition has no results of the ADDs."""
        done = []
        for each in reversed(self._delegates):
            done.append(self._node.finish(self._start("DEL", each)))
            self._results.pop(each.ifname, None)
            self._device_info(each.ifname).unlink(missing_ok=True)
        return done

    def _start(self, verb: str, delegate: Delegate) -> Any:
        ifname, conf, device = delegate
        if verb != "ADD" and ifname in self._results:
            conf = conf | {"prevResult": self._results[ifname]}
        runtime = {"deviceID": device, "CNIDeviceInfoFile": str(self._device_info(ifname))} if device else {}
        wanted = {key: value for key, value in runtime.items() if conf["capabilities"].get(key)}
        stdin = _as_go(conf | ({"runtimeConfig": wanted} if wanted else {}))
        environment = (f"CNI_NETNS={self.netns}", f"CNI_PATH={self._path}")
        more = {"ifname": ifname, "args": self._args, "wrap": ("env", *environment)}
        return self._node.start(verb, stdin, self._pod, **more)

    def _device_info(self, ifname: str) -> Path:
        """Return the path of ``nadutils.GetCNIDeviceInfoPath``, in the node's directory."""
        return self._node.root / "devinfo/cni" / f"{NAMESPACED.replace('/', '-')}-{self._pod}_{ifname}"


def _as_go(document: object) -> bytes:
    """Encode JSON as Go does for a map."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").encode()
