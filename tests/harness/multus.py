"""Multus as the runtime of a pod's further networks: what it hands to a delegate, and its two caches.

pkg/multus/multus.go and pkg/types/conf.go of Multus 4.3 make the request; libcni writes the configuration
anew: sorted keys, no spaces, and the result of the ADD at CHECK and DEL.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.runtime import Outcome
from harness.veth import Node

UID = "f0bfbd5b-096d-48ef-998c-da26743dd0cb"
NAMESPACED = "default/sriov-net"  # the NetworkAttachmentDefinition


def given(pod: str, sandbox: bool = True) -> str:
    """Return what a runtime gives: containerd and CRI-O alike, but for the order."""
    head = f"K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID={pod if sandbox else ''}"
    return f"{head};K8S_POD_UID={UID}"


def thin(pod: str) -> str:
    """Return the arguments of a delegate of the thin plugin, which adds those of its own environment."""
    return f"IgnoreUnknown=true;{given(pod)};IgnoreUnknown=1;{given(pod)}"


def thick(pod: str) -> str:
    """Return the arguments of a delegate of the thick plugin, whose daemon does not know the sandbox."""
    return f"IgnoreUnknown=true;{given(pod, sandbox=False)}"


ARGUMENTS = {"thin": thin, "thick": thick}


class Multus:
    """One pod's delegates on one network. The default network has the index 0 and is not played.

    ``form`` is "thin" or "thick". ``netns`` is the value of CNI_NETNS, as the runtime gives it.
    """

    def __init__(self, node: Node, pod: str, form: str) -> None:
        self._node = node
        self._pod = pod
        self._args = ARGUMENTS[form](pod)
        own = "/opt/cni/bin"
        self._path = f"{own}:{node.search}" if form == "thin" else own
        self._cache = node.root / "multus"
        self.netns = f"/run/netns/{pod}"

    # --- the verbs

    def attach(self, network: dict[str, Any], devices: Sequence[str]) -> list[Outcome]:
        """Cache the delegates and start an ADD for each device at once; "" is a VF of the pool."""
        self._save([_delegate(network, device) for device in devices])
        started = [self._start("ADD", *each) for each in self._delegates()]
        done = [self._node.finish(process) for process in started]
        for (ifname, conf, _), outcome in zip(self._delegates(), done, strict=True):
            if outcome.status == 0:
                self._save_result(ifname, conf, outcome.json)
        return done

    def check(self) -> list[Outcome]:
        """CHECK every delegate."""
        return [self._node.finish(self._start("CHECK", *each)) for each in self._delegates()]

    def detach(self, *, keep: bool = False) -> list[Outcome]:
        """DEL every delegate of the cache, the last one first, and forget them; ``keep`` as at an error."""
        done = []
        for ifname, conf, device in reversed(self._delegates()):
            done.append(self._node.finish(self._start("DEL", ifname, conf, device)))
            self._result(ifname, conf).unlink(missing_ok=True)
            self._device_info(ifname).unlink(missing_ok=True)
        if not keep:  # it is kept with "retryDeleteOnError"
            self._scratch.unlink()
        return done

    # --- a request

    def _start(self, verb: str, ifname: str, conf: dict[str, Any], device: str) -> Any:
        path = self._result(ifname, conf)
        if verb != "ADD" and path.exists():
            conf = conf | {"prevResult": json.loads(path.read_bytes())["result"]}
        runtime = {"deviceID": device, "CNIDeviceInfoFile": str(self._device_info(ifname))} if device else {}
        wanted = {key: value for key, value in runtime.items() if conf["capabilities"].get(key)}
        stdin = _as_go(conf | ({"runtimeConfig": wanted} if wanted else {}))
        environment = (f"CNI_NETNS={self.netns}", f"CNI_PATH={self._path}")
        more = {"ifname": ifname, "args": self._args, "wrap": ("env", *environment)}
        return self._node.start(verb, stdin, self._pod, **more)

    def _device_info(self, ifname: str) -> Path:
        """Return what ``nadutils.GetCNIDeviceInfoPath`` does, below the node's directory."""
        return self._node.root / "devinfo/cni" / f"{NAMESPACED.replace('/', '-')}-{self._pod}_{ifname}"

    # --- the caches below cniDir (/var/lib/cni/multus)

    @property
    def _scratch(self) -> Path:
        return self._cache / self._pod

    def _save(self, delegates: list[dict[str, Any]]) -> None:
        self._scratch.parent.mkdir(exist_ok=True)
        default = {"Conf": {"type": "default"}, "Name": "default", "Bytes": ""}
        self._scratch.write_bytes(_as_go([default, *delegates]))

    def _delegates(self) -> list[tuple[str, dict[str, Any], str]]:
        """Return interface, configuration and device of each delegate in the cache."""
        found = enumerate(json.loads(self._scratch.read_bytes()))
        return [
            (f"net{index}", json.loads(base64.b64decode(each["Bytes"])), each.get("deviceID", ""))
            for index, each in found
            if index
        ]

    def _result(self, ifname: str, conf: dict[str, Any]) -> Path:
        return self._cache / "results" / f"{conf['name']}-{self._pod}-{ifname}"

    def _save_result(self, ifname: str, conf: dict[str, Any], result: Any) -> None:
        path = self._result(ifname, conf)
        path.parent.mkdir(exist_ok=True)
        head = {"kind": "cniCacheV1", "containerId": self._pod, "ifName": ifname, "networkName": conf["name"]}
        config = base64.b64encode(_as_go(conf)).decode()
        args = [pair.split("=", 1) for pair in self._args.split(";")]
        path.write_bytes(_as_go(head | {"config": config, "cniArgs": args, "result": result}))


def _delegate(network: dict[str, Any], device: str) -> dict[str, Any]:
    """Return a delegate as Multus caches it (``DelegateNetConf``), with the device in its configuration."""
    conf = network | ({"deviceID": device, "pciBusID": device} if device else {})
    shown = {key: conf[key] for key in ("cniVersion", "name", "type", "capabilities", "ipam")}
    named = {"deviceID": device, "resourceName": "example.com/sriov_nic"} if device else {}
    return {
        "Conf": shown,
        "ConfList": {},
        "Name": NAMESPACED,
        "IsFilterV4Gateway": False,
        "IsFilterV6Gateway": False,
        **named,
        "Bytes": base64.b64encode(_as_go(conf)).decode(),
    }


def _as_go(document: object) -> bytes:
    """Encode JSON as Go does for a map."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").encode()
