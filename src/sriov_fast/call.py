"""One call of the plugin: the request with what it is served from, and what comes of it.

The same verbs serve a process that ends after one request and the resident server; ``Context`` is the
difference between the two.
"""

from __future__ import annotations

import os

from sriov_fast import codec
from sriov_fast.ipam.kinds import builtin
from sriov_fast.sriov import locks
from sriov_fast.sriov.locate import Where
from sriov_fast.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import ExitStack
    from typing import Any

    from sriov_fast import log
    from sriov_fast.cni.netconf import NetConf
    from sriov_fast.cni.request import Request
    from sriov_fast.ipam.builtin import Builtin
    from sriov_fast.ipam.exec import Ipam
    from sriov_fast.sriov.journal import Attachment, Journal
    from sriov_fast.sriov.roots import Roots
    from sriov_fast.steps import Steps

IPAM_WAIT = 60.0  # seconds; the dhcp plugin itself waits for up to 45
IPAM_GRACE = 10.0  # seconds for an ADD that is not wanted any more
_STDERR = 2


class Reply(Value):
    """What goes to stdout, and ``afterwards``, which nobody waits for.

    ``undelivered`` is for when stdout does not take it: nobody knows then that something was done. Before
    either of them, ``held`` is let go: what the request was served with, such as its locks.
    """

    output: bytes = b""
    afterwards: Callable[[], None] | None = None
    undelivered: Callable[[], object] | None = None
    held: ExitStack | None = None

    def let_go(self) -> None:
        """Close what is held; to be called when the output is out, or cannot be."""
        if self.held:
            self.held.close()


class Context(Value):
    """Where a request is served.

    ``environ`` and ``stderr`` (descriptors) are for its log, ``plugins_stderr`` for plugins that it executes;
    ``netns_fd`` is its namespace where it came as a descriptor, ``home_fd`` our own where that is open.
    ``token`` marks what this very call did.
    ``beside`` runs something while the kernel works, and returns what waits for it; ``defer_release`` lets a
    DEL answer before the VF is home. ``steps`` measures.
    """

    environ: Mapping[str, str] = os.environ
    stderr: Sequence[int] = (_STDERR,)
    plugins_stderr: int = _STDERR
    netns_fd: int = -1
    home_fd: int = -1
    token: str = ""
    beside: Callable[[Callable[[], Any]], Callable[[], Any]] | None = None
    defer_release: bool = False
    steps: Steps | None = None


class Call(Value):
    """One request with what it is served from."""

    request: Request
    conf: NetConf
    roots: Roots
    journal: Journal
    log: log.Logger
    context: Context
    recorded: tuple[str, ...] = ()  # addresses in the attachment's record

    @property
    def who(self) -> str:
        """What others are told who wait for our locks."""
        return f"{self.request.command} {self.request.container_id} {self.request.ifname}".strip()

    @property
    def where(self) -> Where:
        """What the runtime says of the pod's namespace."""
        return Where(path=self.request.netns, fd=self.context.netns_fd, home=self.context.home_fd)

    def owner_lock(self) -> locks.Lock:
        """Keep two requests for one interface of one container apart."""
        asked = self.request
        return locks.acquire(self.roots.run, f"owner-{asked.container_id}~{asked.ifname}", self.who)

    def step(self, name: str, kind: str = "ours") -> None:
        """Say what has just been done, and by whom: "kernel", "ipam" or "ours"."""
        if self.context.steps:
            self.context.steps.done(name, kind)

    def of(self, record: Attachment) -> Call:
        """Return the call that its own runtime would DEL an attachment with: as it was attached."""
        theirs = self._with_recorded(record, record.request.get("config", {}))
        asked = theirs.request.replace(
            container_id=record.container_id, ifname=record.ifname, netns=record.netns
        )
        context = self.context.replace(netns_fd=self.where.fd_of(record.netns))
        return theirs.replace(request=asked, context=context)

    def as_added(self, record: Attachment) -> Call:
        """Return the call with what the ADD's IPAM was given: configuration and CNI_ARGS.

        Both may have changed since. The namespace and ``prevResult`` stay this call's. A record that cannot
        be read has neither, and this call is all there is.
        """
        if not record.request:
            return self
        config = record.request["config"]
        if "prevResult" in self.conf.raw:
            config = config | {"prevResult": self.conf.raw["prevResult"]}
        return self._with_recorded(record, config)

    def _with_recorded(self, record: Attachment, config: dict[str, Any]) -> Call:
        """Return the call with another configuration for IPAM, and the record's CNI_ARGS.

        CNI_PATH is where plugins are now; where they were follows.
        """
        given = record.request
        path = dict.fromkeys((*self.request.path, *given.get("path", ())))
        asked = self.request.replace(
            args_text=given.get("args", ""), path=tuple(path), stdin=codec.dumps(config)
        )
        conf = self.conf.replace(raw=config, ipam=config.get("ipam"), ipam_type=record.ipam)
        return self.replace(request=asked, conf=conf, recorded=record.addresses)

    def ipam(self) -> Ipam | Builtin | None:
        """Return this request's IPAM, built in or to be executed; None where the configuration has none."""
        if not self.conf.ipam_type:
            return None
        asked = self.request
        serve = builtin(self.conf.ipam_type, self.conf.ipam)
        if serve:
            return serve(
                config=self.conf.raw,
                container_id=asked.container_id,
                ifname=asked.ifname,
                args=asked.args_text,
                recorded=self.recorded,
                runtime_dir=self.roots.run,
                state_dir=self.roots.state,
                stderr=self.context.stderr,
            )
        from sriov_fast.ipam.exec import Ipam  # late: only for what is executed

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
