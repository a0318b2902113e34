"""A client of the container runtime interface (CRI): pod sandboxes, as a kubelet starts and ends them.

``cri.proto`` has the messages; grpcio-tools generates the code when this module is imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import grpc

from lab.errors import LabError

_messages, _services = grpc.protos_and_services("lab/cri.proto")
SECONDS = 240.0  # for one call; a kubelet waits as long for a sandbox


class Sandboxes:
    """A connection to a runtime; a context manager."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix://{socket}")
        self._runtime = _services.RuntimeServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def run(
        self,
        name: str,
        handler: str = "",
        *,
        attempt: int = 0,
        host_network: bool = False,
        ports: Mapping[int, int] | None = None,
    ) -> str:
        """Start a sandbox and return its ID.

        ``handler`` names a runtime of containerd's configuration; ``ports`` maps host ports to pod ports.
        """
        config = _messages.PodSandboxConfig()
        config.metadata.name = name
        config.metadata.uid = f"uid-{name}"
        config.metadata.namespace = "default"
        config.metadata.attempt = attempt
        for host, pod in (ports or {}).items():
            config.port_mappings.add(host_port=host, container_port=pod)
        options = config.linux.security_context.namespace_options
        options.network = _messages.NODE if host_network else _messages.POD
        request = _messages.RunPodSandboxRequest(config=config, runtime_handler=handler)
        return str(self._call("RunPodSandbox", request).pod_sandbox_id)

    def stop(self, sandbox: str) -> None:
        """Stop a sandbox; the runtime sends DEL to its network."""
        self._call("StopPodSandbox", _messages.PodSandboxRequest(pod_sandbox_id=sandbox))

    def remove(self, sandbox: str) -> None:
        """Remove a sandbox; one that runs is stopped first."""
        self._call("RemovePodSandbox", _messages.PodSandboxRequest(pod_sandbox_id=sandbox))

    def address(self, sandbox: str) -> str:
        """Return the address that the runtime reports for a sandbox, "" without one."""
        return str(self._status(sandbox).status.network.ip)

    def namespace(self, sandbox: str) -> Path:
        """Return the path of a sandbox's network namespace."""
        spec = json.loads(self._status(sandbox, verbose=True).info["info"])["runtimeSpec"]
        return next(Path(each["path"]) for each in spec["linux"]["namespaces"] if each["type"] == "network")

    def is_ready(self, sandbox: str) -> bool:
        """Return whether a sandbox runs."""
        return bool(self._status(sandbox).status.state == _messages.SANDBOX_READY)

    def _status(self, sandbox: str, *, verbose: bool = False) -> Any:
        request = _messages.PodSandboxRequest(pod_sandbox_id=sandbox, verbose=verbose)
        return self._call("PodSandboxStatus", request)

    def _call(self, method: str, request: Any) -> Any:
        try:
            return getattr(self._runtime, method)(request, timeout=SECONDS)
        except grpc.RpcError as error:
            raise LabError(f"{method}: {error.details()}") from error
