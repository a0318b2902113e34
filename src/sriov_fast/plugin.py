"""The six verbs, wired from the rooms: ``cni`` says what is asked, ``ipam`` gives addresses, ``sriov`` acts.

``run`` takes a request and returns what to print, and what to do once that is printed.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from sriov_fast import codec, log
from sriov_fast.backend import nl
from sriov_fast.cni import netconf, reply, result
from sriov_fast.errors import BusyError, CheckError, IpamError, SriovError, UnavailableError
from sriov_fast.ipam.builtin import builtin
from sriov_fast.ipam.delegate import Ipam, may_choose_vf, needs_interface
from sriov_fast.sriov import affinity, attach, detach, locks, netns, pool
from sriov_fast.sriov.journal import ATTACHED, Attachment, Journal
from sriov_fast.values import Route, Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sriov_fast.cni.netconf import NetConf
    from sriov_fast.cni.request import Request
    from sriov_fast.cni.result import Result
    from sriov_fast.ipam.builtin import Builtin
    from sriov_fast.sriov.pool import Choice
    from sriov_fast.sriov.roots import Roots
    from sriov_fast.values import Link

IPAM_WAIT = 60.0  # seconds; the dhcp plugin itself waits for up to 45
IPAM_GRACE = 10.0  # seconds for an ADD that is not wanted any more


class Reply(Value):
    """What goes to stdout, and ``afterwards``, which nobody waits for.

    ``undelivered`` is for when stdout does not take it: nobody knows then that something was done.
    """

    output: bytes = b""
    afterwards: Callable[[], None] | None = None
    undelivered: Callable[[], object] | None = None


class Call(Value):
    """One request with what it is served from."""

    request: Request
    conf: NetConf
    roots: Roots
    journal: Journal
    log: log.Logger

    @property
    def who(self) -> str:
        """What others are told who wait for our locks."""
        return f"{self.request.command} {self.request.container_id} {self.request.ifname}".strip()

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
                runtime_dir=self.roots.run,
            )
        return Ipam(
            kind=self.conf.ipam_type,
            path=asked.path,
            config=asked.stdin,
            container_id=asked.container_id,
            netns=asked.netns,
            ifname=asked.ifname,
            args=asked.args_text,
        )


def run(request: Request, roots: Roots) -> Reply:
    """Carry out one verb; raises SriovError or OSError, for ``cni.reply.error`` to word."""
    if request.command == "VERSION":
        return Reply(output=reply.version_info(request.stdin))
    conf = netconf.parse(request)
    context = {"command": request.command, "containerID": request.container_id, "netns": request.netns}
    context |= {"ifname": request.ifname, "network": conf.name}
    with ExitStack() as closing:
        logger = log.Logger(conf.log_level, conf.log_file, {k: v for k, v in context.items() if v})
        closing.callback(logger.close)
        for warning in conf.warnings:
            logger.warning(warning)
        call = Call(
            request=request, conf=conf, roots=roots, journal=Journal(roots.run, roots.proc), log=logger
        )
        return _VERBS[request.command](call)


# --- ADD


def add(call: Call) -> Reply:
    """Give the container a VF (SPEC, "ADD"). Whatever fails, everything is undone."""
    with ExitStack() as closing, ExitStack() as undo:
        fd = netns.open_pod(call.request.netns)
        closing.callback(os.close, fd)
        affinity.require_online(call.conf.cores, call.roots)
        closing.enter_context(_owner_lock(call))
        _require_detached(call)
        # undone last: an address may go to the next pod only when this one's VF is quiet
        addresses = undo.enter_context(ExitStack())
        call, start = _ipam_first(call, addresses)
        choice = pool.choose(_wish(call), call.journal, call.roots)
        closing.enter_context(choice.lock)
        host = closing.enter_context(nl.Socket())
        record = _journaled(call, choice, host, undo)
        done = _attached(call, record, host, fd, start)
        undo.pop_all()
    return done


class Answer(Value):
    """An IPAM result with its ``extra``."""

    result: Result
    extra: object = None


def _ipam_first(call: Call, undo: ExitStack) -> tuple[Call, Callable[[], Callable[[], Answer]]]:
    """Run IPAM before everything else where it may choose the VF, and let its choice go before ours.

    The second is what starts IPAM, or seems to, and returns what waits for the answer.
    """
    if not call.conf.ipam_type or not may_choose_vf(call.conf.ipam_type):
        return call, lambda: _ipam_start(call, undo)
    for pf in call.conf.masters:
        pool.scan(pf, call.roots)  # what is wrong already must not cost an address
    answer = _ipam_start(call, undo)()
    return call.replace(conf=netconf.with_extra(call.conf, answer.extra)), lambda: lambda: answer


def _owner_lock(call: Call) -> locks.Lock:
    """Keep two requests for one interface of one container apart."""
    asked = call.request
    return locks.acquire(call.roots.run, f"owner-{asked.container_id}~{asked.ifname}", call.who)


def _require_detached(call: Call) -> None:
    """Refuse a second ADD; put right what a first one left half done when it was killed."""
    asked = call.request
    record = call.journal.find(asked.container_id, asked.ifname)
    if record is None:
        return
    if record.state == ATTACHED:
        raise BusyError(
            f"container {asked.container_id} has {asked.ifname} already: VF {record.vf} of {record.pf}",
            "DEL it first",
            interface=record.ifname,
            vf=record.vf,
        )
    call.log.warning("an earlier ADD was cut short: its VF is brought home first", pci=record.pci)
    try:
        _delete_record(_as_attached(call, record), record)
    except IpamError as error:  # what it cannot give back it may well refuse, or give again
        call.log.error("its address could not be given back", plugin=record.ipam, why=error)
        call.journal.remove(record)


def _ipam_start(call: Call, undo: ExitStack) -> Callable[[], Answer]:
    """Start IPAM's ADD; return what waits for its answer. From here on a failure gives the address back."""
    ipam = call.ipam()
    if ipam is None:
        return lambda: Answer(result=result.Result())
    running = ipam.start("ADD")
    undo.callback(_ipam_undo, call, ipam)
    undo.callback(running.settle, IPAM_GRACE)

    def finish() -> Answer:
        return _answer(running.finish(IPAM_WAIT), call.conf)

    return finish


def _answer(document: dict[str, Any] | None, conf: NetConf) -> Answer:
    where = f"the result of IPAM plugin {conf.ipam_type}"
    document = document or {}
    found = result.from_json(document, conf.version, error=IpamError, where=where)
    return Answer(result=found, extra=document.get("extra"))


def _ipam_undo(call: Call, ipam: Ipam | Builtin) -> None:
    try:
        ipam.run("DEL", IPAM_WAIT)
    except (SriovError, OSError) as error:
        call.log.error("IPAM could not be undone", plugin=ipam.kind, why=error)


def _wish(call: Call) -> pool.Wish:
    conf = call.conf
    return pool.Wish(
        masters=conf.masters, vf=conf.vf, device_id=conf.device_id, cores=conf.cores, who=call.who
    )


def _journaled(call: Call, choice: Choice, host: nl.Socket, undo: ExitStack) -> Attachment:
    """Write down the VF's state and what is asked, before the first change."""
    asked, conf = call.request, call.conf
    record = attach.observe(
        host,
        choice,
        call.roots,
        Attachment(
            container_id=asked.container_id,
            ifname=asked.ifname,
            pci=choice.vf.pci,
            network=conf.name,
            netns=asked.netns,
            asked=conf.settings,
            mtu=conf.mtu,
            ipam=conf.ipam_type,
            request={"args": asked.args_text, "path": list(asked.path), "config": conf.raw},
            boot=call.journal.boot(),
        ),
    )
    call.journal.write(record)
    undo.callback(_take_back, call, record)
    return record


def _take_back(call: Call, record: Attachment) -> None:
    """Undo an attach. Where that fails the record stays, so that DEL or GC can try again."""
    latest = call.journal.read(record.pci, record.owner) or record
    try:
        detach.release(latest, call.request.netns, call.roots, call.log)
        call.journal.remove(latest)
    except (SriovError, OSError) as error:
        call.log.error("the VF could not be brought home", pci=record.pci, pf=record.pf, why=error)


def _attached(
    call: Call, record: Attachment, host: nl.Socket, fd: int, start: Callable[[], Callable[[], Answer]]
) -> Reply:
    """Configure and move the VF while IPAM runs, where that is possible, then set the addresses."""
    finish = None if needs_interface(call.conf.ipam_type) else start()
    attach.configure(host, record)
    attach.move(host, record, fd)
    answer = (finish or start())()
    link = _addressed(record, host, fd, answer.result)
    pinned = _pinned(call, record)
    record = pinned.replace(state=ATTACHED, ifindex=link.index, mac=link.mac, **_given(answer.result))
    call.journal.write(record)
    call.log.info("attached", pf=record.pf, vf=record.vf, pci=record.pci, mac=record.mac)
    return Reply(
        output=reply.success(_outcome(call, record, link, answer.result), call.conf),
        afterwards=_announcement(call.request.netns, record),
        undelivered=lambda: delete(call),
    )


def _addressed(record: Attachment, host: nl.Socket, fd: int, given: Result) -> Link:
    addresses = [item.address for item in given.ips]
    if any(":" in cidr for cidr in addresses):
        _enable_ipv6(fd, record.ifname)
    with nl.Socket(fd) as pod:
        # the kernel gives another index where the pod has a device with the host's
        index = netns.index_of(pod.fileno(), record.ifname)
        link = attach.address(pod, record, index, addresses, _routes(given))
    attach.verify(host, record, link)
    return link


def _enable_ipv6(fd: int, ifname: str) -> None:
    """Runtimes switch IPv6 off by default in namespaces; an address that is given must be possible."""
    try:
        nl.netns_write(fd, f"/proc/sys/net/ipv6/conf/{ifname}/disable_ipv6", "0")
    except OSError:
        pass  # no IPv6 in the kernel, or a read-only /proc/sys: if it matters, the address will be refused


def _routes(given: Result) -> list[Route]:
    """Return the routes with their gateways: an IPAM route without one uses its family's first gateway."""
    gateways = {":" in item.gateway: item.gateway for item in reversed(given.ips) if item.gateway}
    return [
        route if route.gw or route.scope is not None else route.replace(gw=gateways.get(":" in route.dst, ""))
        for route in given.routes
    ]


def _given(given: Result) -> dict[str, Any]:
    addresses = tuple(item.address for item in given.ips)
    return {"addresses": addresses, "routes": tuple(route.as_dict() for route in _routes(given))}


def _pinned(call: Call, record: Attachment) -> Attachment:
    """Pin the interrupts; those that came with the bring-up are written down first, too."""
    if not call.conf.cores:
        return record
    affinity.warn_of_irqbalance(call.log)
    now = affinity.masks_of(record.pci, call.roots)
    wanted = affinity.plan(list(now), call.conf.cores)
    record = record.replace(irqs=now | record.irqs, pinned=wanted)
    call.journal.write(record)
    return record.replace(pinned=affinity.apply(wanted, call.roots, call.log))


def _outcome(call: Call, record: Attachment, link: Link, given: Result) -> Result:
    interface = result.Interface(
        name=record.ifname, mac=link.mac, mtu=link.mtu, sandbox=record.netns, pci_id=record.pci
    )
    ours = result.Result(
        interfaces=(interface,),
        ips=tuple(item.replace(interface=0) for item in given.ips),
        routes=given.routes,
        dns=call.conf.dns or given.dns,
    )
    return result.merge(call.conf.prev_result, ours)


def _announcement(path: str, record: Attachment) -> Callable[[], None] | None:
    if not record.addresses:
        return None

    def afterwards() -> None:
        from sriov_fast.sriov import announce  # late: nobody waits for it here

        fd = netns.open_netns(path)
        announce.behind_the_reply(lambda: announce.send(fd, record.ifname, record.mac, record.addresses))

    return afterwards


# --- DEL


def delete(call: Call) -> Reply:
    """Bring everything back (SPEC, "DEL"); what is gone already is no fault."""
    asked = call.request
    with _owner_lock(call):
        record = call.journal.find(asked.container_id, asked.ifname)
        if record is None:
            _ipam_release(call)()
        else:
            _delete_record(call, record)
    return Reply()


def _delete_record(call: Call, record: Attachment) -> None:
    """Release VF and address. The record stays until both are, so that DEL or GC can try again."""
    with ExitStack() as late:
        through_vf = needs_interface(call.conf.ipam_type)
        if through_vf:
            late.callback(_ipam_release(call, wait=True))

        def when_quiet() -> None:
            if not through_vf:
                late.callback(_ipam_release(call))

        with locks.acquire(call.roots.run, f"vf-{record.pci}", call.who):
            detach.release(record, call.request.netns, call.roots, call.log, when_quiet)
    call.journal.remove(record)
    call.log.info("released", pf=record.pf, vf=record.vf, pci=record.pci)


def _ipam_release(call: Call, *, wait: bool = False) -> Callable[[], None]:
    """Start IPAM's DEL, which runs while the kernel moves the VF; return what waits for it.

    Its error is raised by that. With ``wait`` it has ended when this returns.
    """
    ipam = call.ipam()
    if ipam is None:
        return lambda: None
    try:
        running = ipam.start("DEL")
        if wait:
            running.finish(IPAM_WAIT)
    except SriovError as error:
        return _raiser(error)

    def finish() -> None:
        if not wait:
            running.finish(IPAM_WAIT)

    return finish


def _raiser(error: SriovError) -> Callable[[], None]:
    def late() -> None:
        raise error

    return late


# --- CHECK, STATUS, GC


def check_(call: Call) -> Reply:
    """Compare what is there with what was attached (SPEC, "CHECK")."""
    asked = call.request
    record = call.journal.find(asked.container_id, asked.ifname)
    if record is None:
        raise CheckError(
            f"container {asked.container_id} has no {asked.ifname} of ours",
            "it was never attached, or is deleted",
        )
    from sriov_fast.sriov import check  # late: no ADD and no DEL needs it

    _check_previous(call, record)
    ipam = call.ipam()
    if ipam is not None:
        ipam.run("CHECK", IPAM_WAIT)
    fd = netns.open_netns(asked.netns)
    try:
        check.check(record, fd, call.roots)
    finally:
        os.close(fd)
    return Reply()


def _check_previous(call: Call, record: Attachment) -> None:
    """Compare with the result that the runtime remembers."""
    previous = call.conf.prev_result
    if previous is None or not previous.interfaces:
        return
    for number, item in enumerate(previous.interfaces):
        if item.name == record.ifname and item.sandbox == record.netns:
            known = {ip.address for ip in previous.ips if ip.interface == number}
            missing = [cidr for cidr in record.addresses if cidr not in known]
            if missing or (item.mac and item.mac != record.mac):
                raise CheckError(
                    f"prevResult: {record.ifname} has {item.mac} {sorted(known)}, "
                    f"attached were {record.mac} {list(record.addresses)}",
                    "the runtime's memory and ours differ; delete the pod and start it anew",
                )
            return
    raise CheckError(
        f"prevResult: no interface {record.ifname!r} in {record.netns}",
        "the runtime's memory and ours differ; delete the pod and start it anew",
    )


def status(call: Call) -> Reply:
    """Say whether an ADD can be served (SPEC, "STATUS"); asked every few seconds, so cheap."""
    conf = call.conf
    try:
        usable = pool.any_usable(conf.masters, conf.device_id, call.journal, call.roots)
        why = f"no PF of {', '.join(conf.masters) or conf.device_id} has a usable VF"
    except (OSError, ValueError, SriovError) as error:
        usable, why = False, f"{', '.join(conf.masters) or conf.device_id}: {error}"
    late_device = not conf.masters and not conf.device_id
    if not usable and not late_device:
        raise UnavailableError(
            why, "make VFs (sriov_numvfs), and see that their driver is bound; `sriov-fast vfs` shows them"
        )
    ipam = call.ipam()
    if ipam is not None:
        ipam.run("STATUS", IPAM_WAIT, call.log.debug)
    return Reply()


def collect(call: Call) -> Reply:
    """Release every attachment of this network that is not in the list of valid ones (SPEC, "GC").

    One that cannot be released does not keep the others; the first fault is raised in the end.
    """
    valid = call.conf.valid_attachments or ()
    faults: list[Exception] = []
    for record in call.journal.all():
        if record.network != call.conf.name or record.owner in valid:
            continue
        try:
            _collect_one(call, record)
        except Exception as error:
            call.log.error("GC could not release", pci=record.pci, container=record.container_id, why=error)
            faults.append(error)
    ipam = call.ipam()
    if ipam is not None:
        ipam.run("GC", IPAM_WAIT, call.log.debug)
    if faults:
        raise faults[0]
    return Reply()


def _as_attached(call: Call, record: Attachment) -> Call:
    """Return the call that its own runtime would DEL the attachment with: as it was attached."""
    given = record.request
    config = given.get("config", {})
    asked = call.request.replace(
        container_id=record.container_id,
        ifname=record.ifname,
        netns=record.netns,
        args_text=given.get("args", ""),
        path=call.request.path or tuple(given.get("path", ())),
        stdin=codec.dumps(config),
    )
    conf = call.conf.replace(raw=config, ipam=config.get("ipam"), ipam_type=record.ipam)
    return call.replace(request=asked, conf=conf)


def _collect_one(call: Call, record: Attachment) -> None:
    theirs = _as_attached(call, record)
    with _owner_lock(theirs):
        still = call.journal.find(*record.owner)
        if still is not None:
            _delete_record(theirs, still)


_VERBS: dict[str, Callable[[Call], Reply]] = {
    "ADD": add,
    "DEL": delete,
    "CHECK": check_,
    "STATUS": status,
    "GC": collect,
}
