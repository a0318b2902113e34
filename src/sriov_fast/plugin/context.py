"""One call of the plugin: the request and its surroundings, and the reply.

The same verbs serve a process that ends after one request and the resident server; ``Context`` is the
difference between the two.
"""

from __future__ import annotations

import os
import time

from sriov_fast.common import executor, json
from sriov_fast.common.errors import TryAgainError
from sriov_fast.common.record import Record
from sriov_fast.ipam.keys import Keys
from sriov_fast.ipam.kinds import builtin
from sriov_fast.vf import locks
from sriov_fast.vf.find import PodNetns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import ExitStack
    from typing import Any

    from sriov_fast.cni.config import NetConf
    from sriov_fast.cni.request import Request
    from sriov_fast.common import log
    from sriov_fast.common.paths import Roots
    from sriov_fast.common.trace import Steps
    from sriov_fast.ipam.builtin import Builtin
    from sriov_fast.ipam.exec import Ipam
    from sriov_fast.vf.journal import Attachment, Journal

IPAM_WAIT = 60.0  # seconds; the dhcp plugin itself waits for up to 45
# Moves between namespaces, which the kernel's RTNL lock serialises: the ADDs' go before deferred ones.
MOVES = executor.Turns(patience=0.1)
IPAM_GRACE = 10.0  # seconds; for the ADD of a delegate when the attach has failed
_STDERR = 2


class Reply(Record):
    """The output for stdout, and the work that follows it.

    ``afterwards`` runs when the output is delivered, ``undelivered`` when it could not be: the runtime does
    not know then that anything was done. ``held`` has the locks and descriptors of the request, and is closed
    before either.
    """

    output: bytes = b""
    afterwards: Callable[[], None] | None = None
    undelivered: Callable[[], object] | None = None
    held: ExitStack | None = None

    def let_go(self) -> None:
        """Release locks and descriptors; called after the attempt to deliver the output."""
        if self.held:
            self.held.close()


class Context(Record):
    """The surroundings of a request.

    ``environ`` is the environment of its sender. ``stderr`` has the descriptors for the log,
    ``plugins_stderr`` is the stderr of the plugins that are executed. ``netns_fd`` is the pod's namespace if
    the sender opened it, ``host_fd`` the host's if it is open; -1 otherwise. ``token`` marks the attachment
    that this request makes. With ``threads`` tasks run in helper threads. With ``defer_release`` a DEL
    replies before the VF is home. ``timeout`` is the limit of a verb in seconds if the configuration has
    none; 0 is no limit. ``steps`` measures.
    """

    environ: Mapping[str, str] = os.environ
    stderr: Sequence[int] = (_STDERR,)
    plugins_stderr: int = _STDERR
    netns_fd: int = -1
    host_fd: int = -1
    token: str = ""
    threads: bool = False
    defer_release: bool = False
    timeout: float = 0.0
    steps: Steps | None = None


class Call(Record):
    """One request and its surroundings. ``ends`` is its deadline (time.monotonic)."""

    request: Request
    conf: NetConf
    roots: Roots
    journal: Journal
    log: log.Logger
    context: Context
    recorded: tuple[str, ...] = ()  # addresses in the attachment's record
    occupied: tuple[str, ...] = ()  # PCI addresses of VFs with a device on top that the host does not see
    ends: float = float("inf")

    @property
    def who(self) -> str:
        """This request's name in the errors of others that wait for its locks."""
        return f"{self.request.command} {self.request.container_id} {self.request.ifname}".strip()

    @property
    def pod_netns(self) -> PodNetns:
        """The pod's namespace, as the runtime names it."""
        return PodNetns(path=self.request.netns, fd=self.context.netns_fd, host_fd=self.context.host_fd)

    def owner_lock(self) -> locks.Lock:
        """Lock this interface of this container against other requests."""
        asked = self.request
        name = f"owner-{asked.container_id}~{asked.ifname}"
        return locks.acquire(self.roots.run, name, self.who, self.wait(locks.WAIT))

    def vf_lock(self, pci: str) -> locks.Lock:
        """Lock a VF against other requests."""
        return locks.acquire(self.roots.run, f"vf-{pci}", self.who, self.wait(locks.WAIT))

    def wait(self, longest: float) -> float:
        """Return the seconds to wait for one thing: ``longest``, or the rest of the time if that is less."""
        return max(0.0, min(longest, self.ends - time.monotonic()))

    def demand_time(self) -> None:
        """Raise TryAgainError if the request's time is over."""
        if time.monotonic() >= self.ends:
            limit = self.context.timeout if self.conf.timeout is None else self.conf.timeout
            msg = f"timeout = {limit:g}: {self.request.command} has not ended in that time"
            raise TryAgainError(msg, "the kernel, the PF's driver or IPAM was slow; try again")

    def unlimited(self) -> Call:
        """Return this call without a deadline: an undo is not cut."""
        return self.replace(ends=float("inf"))

    def after_reply(self) -> Call:
        """Return this call without a deadline and without the sender's stderr, which is closed by then."""
        return self.unlimited().replace(context=self.context.replace(plugins_stderr=_STDERR))

    def tasks(self) -> executor.Scope:
        """Return a scope for tasks, all of which have ended when the scope is left."""
        return executor.Scope(threads=self.context.threads)

    def step(self, name: str, kind: str = "ours") -> None:
        """Record the end of a step; ``kind`` is "kernel", "ipam" or "ours"."""
        if self.context.steps:
            self.context.steps.done(name, kind)

    def of(self, record: Attachment) -> Call:
        """Return this call with the record's request: a DEL as the attachment's own runtime sends it."""
        theirs = self._with_recorded(record, record.request.get("config", {}))
        asked = theirs.request.replace(
            container_id=record.container_id, ifname=record.ifname, netns=record.netns
        )
        context = self.context.replace(netns_fd=self.pod_netns.fd_of(record.netns))
        return theirs.replace(request=asked, context=context)

    def as_added(self, record: Attachment) -> Call:
        """Return this call with the configuration and the CNI_ARGS of the ADD, for IPAM.

        Both may have changed since. The namespace and ``prevResult`` stay this call's. A broken record has
        neither: this call is returned.
        """
        if not record.request:
            return self
        config = record.request["config"]
        if "prevResult" in self.conf.raw:
            config = config | {"prevResult": self.conf.raw["prevResult"]}
        return self._with_recorded(record, config)

    def _with_recorded(self, record: Attachment, config: dict[str, Any]) -> Call:
        """Return this call with another configuration for IPAM, and the record's CNI_ARGS.

        CNI_PATH is this request's, followed by the record's.
        """
        given = record.request
        path = dict.fromkeys((*self.request.path, *given.get("path", ())))
        asked = self.request.replace(
            args_text=given.get("args", ""), path=tuple(path), stdin=json.dumps(config)
        )
        conf = self.conf.replace(raw=config, ipam=config.get("ipam"), ipam_type=record.ipam)
        return self.replace(request=asked, conf=conf, recorded=record.addresses)

    def ipam(self) -> Ipam | Builtin | None:
        """Return this request's IPAM, built in or to be executed; None if the configuration has none."""
        if not self.conf.ipam_type:
            return None
        asked = self.request
        serve = builtin(self.conf.ipam_type, self.conf.ipam)
        if serve:
            return serve(
                keys=Keys(self.conf.raw),
                container_id=asked.container_id,
                ifname=asked.ifname,
                args=asked.args_text,
                recorded=self.recorded,
                ends=self.ends,
                networks=self.roots.networks,
                runtime_dir=self.roots.run,
                state_dir=self.roots.state,
                stderr=self.context.stderr,
            )
        from sriov_fast.ipam.exec import Ipam  # late: only for plugins that are executed

        return Ipam(
            kind=self.conf.ipam_type,
            path=asked.path,
            config=asked.stdin,
            container_id=asked.container_id,
            netns=asked.netns,
            ifname=asked.ifname,
            args=asked.args_text,
            environ=self.context.environ,
            stderr=self.context.plugins_stderr,
        )
