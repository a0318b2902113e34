"""The six verbs, wired from the rooms: ``cni`` says what is asked, ``ipam`` gives addresses, ``sriov`` acts.

``run`` takes a request and returns what to print, and what to do once that is printed. ADD and DEL are here,
the others, which nobody waits for, in ``upkeep``.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from sriov_fast import codec, log, ready
from sriov_fast.backend import nl
from sriov_fast.call import IPAM_GRACE, IPAM_WAIT, Call, Context, Reply
from sriov_fast.cni import netconf, reply, result
from sriov_fast.errors import BusyError, HiddenError, IpamError, RefusedError, SriovError
from sriov_fast.ipam.kinds import may_choose_vf, needs_interface
from sriov_fast.sriov import affinity, attach, candidate, detach, locate, locks, netns, pool
from sriov_fast.sriov.journal import ATTACHED, BROKEN, HOMING, Attachment, Journal
from sriov_fast.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from sriov_fast.cni.netconf import NetConf
    from sriov_fast.cni.request import Request
    from sriov_fast.cni.result import Result
    from sriov_fast.ipam.builtin import Builtin, Done
    from sriov_fast.ipam.exec import Ipam
    from sriov_fast.ipam.exec import Running as Executed
    from sriov_fast.ready import Ready
    from sriov_fast.sriov.attach import Addressing
    from sriov_fast.sriov.pool import Choice
    from sriov_fast.sriov.roots import Roots
    from sriov_fast.values import Link

    Running = Executed | Done
    T = TypeVar("T")
    Start = Callable[[Callable[["Answer"], T], ExitStack], Callable[[], T]]


def run(request: Request, roots: Roots, context: Context | None = None) -> Reply:
    """Carry out one verb; raises SriovError or OSError, for ``cni.reply.error`` to word."""
    if request.command == "VERSION":
        return Reply(output=reply.version_info(request.stdin))
    context = context or Context()
    journal = Journal(roots.run, roots.proc)
    conf = _configuration(request, journal)
    fields = {"command": request.command, "containerID": request.container_id, "netns": request.netns}
    fields |= {"ifname": request.ifname, "network": conf.name}
    with ExitStack() as closing:
        known = {key: value for key, value in fields.items() if value}
        logger = log.Logger(conf.log_level, conf.log_file, known, context.stderr)
        closing.callback(logger.close)
        for warning in conf.warnings:
            logger.warning(warning)
        call = Call(
            request=request,
            conf=conf,
            roots=roots,
            journal=journal,
            log=logger,
            context=context,
        )
        call.step("read the request")
        return _with_log(_verb(request.command)(call), logger)


def _configuration(request: Request, journal: Journal) -> NetConf:
    """Return the settled configuration. A DEL whose own cannot be read has that of the ADD."""
    try:
        return netconf.parse(request)
    except SriovError as error:
        record = journal.find(request.container_id, request.ifname) if request.command == "DEL" else None
        if record is None or not record.request:
            raise
        conf = netconf.parse(request.replace(stdin=codec.dumps(record.request["config"])))
        return conf.replace(warnings=(f"passed over: {error.msg}", *conf.warnings))


def _with_log(done: Reply, logger: log.Logger) -> Reply:
    """Let what comes after the reply write to the log, and leave no file open."""
    later = done.afterwards
    if later is None:
        return done

    def afterwards() -> None:
        try:
            later()
        finally:
            logger.close()

    return done.replace(afterwards=afterwards)


def _verb(command: str) -> Callable[[Call], Reply]:
    if command == "ADD":
        return add
    if command == "DEL":
        return delete
    from sriov_fast import upkeep  # late: no ADD and no DEL needs it

    return upkeep.VERBS[command]


# --- ADD


def add(call: Call) -> Reply:
    """Give the container a VF (SPEC, "ADD"). Whatever fails, everything is undone."""
    with ExitStack() as held, ExitStack() as undo:
        fd = netns.open_pod(call.request.netns, call.context.netns_fd, call.context.home_fd)
        held.callback(os.close, fd)
        affinity.require_online(call.conf.cores, call.roots)
        held.enter_context(call.owner_lock())
        _require_detached(call)
        # undone last: an address may go to the next pod only when this one's VF is quiet
        addresses = undo.enter_context(ExitStack())
        host = held.enter_context(nl.Socket())
        call, start = _ipam_first(call, host, addresses)
        call.step("check, lock")
        choice = pool.choose(wish_of(call, host), call.journal, call.roots)
        held.enter_context(choice.lock)
        call.step("choose the VF")
        record = _journaled(call, choice, host, undo, addresses)
        done = _attached(call, record, Means(host=host, netns=fd, held=held), start)
        undo.pop_all()
        return done.replace(held=held.pop_all())


class Answer(Value):
    """An IPAM result with its ``extra``."""

    result: Result
    extra: object = None


class Means(Value):
    """A socket in our namespace, a descriptor of the pod's, and ``held``, which closes with the locks."""

    host: nl.Socket
    netns: int
    held: ExitStack


def _ipam_first(call: Call, host: nl.Socket, undo: ExitStack) -> tuple[Call, Start[Any]]:
    """Run IPAM before everything else where it may choose the VF, and let its choice go before ours.

    The second is what starts IPAM, or seems to. It is given what to do with the answer, and a stack that will
    wait for the end of what runs beside us; it returns what waits for what was made of the answer.
    """
    if not call.conf.ipam_type or not may_choose_vf(call.conf.ipam_type):
        return call, lambda work, running: _ipam_start(call, undo, work, running)
    # what is wrong already must not cost an address
    pool.present(wish_of(call, host).replace(warn=call.log.debug), call.roots)
    with ExitStack() as running:
        answer = _ipam_start(call, undo, lambda found: found, running)()
    settled = call.replace(conf=netconf.with_extra(call.conf, answer.extra))
    return settled, lambda work, running: _joined(call, lambda: work(answer), running)


def _require_detached(call: Call) -> None:
    """Refuse a second ADD; put right what a first one left half done when it was killed."""
    asked = call.request
    record = call.journal.find(asked.container_id, asked.ifname)
    if record is None:
        return
    if record.state == BROKEN:
        raise BusyError(
            f"container {asked.container_id} has {asked.ifname} already; VF {record.pci} has a broken record",
            "DEL it first; `sriov-fast doctor` shows what is wrong with the record",
            interface=record.ifname,
        )
    if record.state == ATTACHED and not (record.token and record.token == call.context.token):
        raise BusyError(
            f"container {asked.container_id} has {asked.ifname} already: VF {record.vf} of {record.pf}",
            "DEL it first",
            interface=record.ifname,
            vf=record.vf,
        )
    call.log.warning("an earlier ADD was cut short: its VF is brought home first", pci=record.pci)
    release(call.of(record), record)


def _ipam_start(
    call: Call, undo: ExitStack, work: Callable[[Answer], T], running: ExitStack
) -> Callable[[], T]:
    """Start IPAM's ADD; return what waits for its answer, and what ``work`` makes of that.

    From here on a failure gives the address back.
    """
    ipam = call.ipam()
    if ipam is None:
        return _joined(call, lambda: work(Answer(result=result.Result())), running)
    starting = _joined(call, lambda: _begun(ipam.start("ADD"), call.conf, work), running)
    if not call.context.beside:
        starting()  # a fault that is known now must not cost a move
    running.callback(_settled, starting)
    undo.callback(_ipam_take_back, call, ipam, starting)

    def finish() -> T:
        return starting()[1]()

    return finish


def _begun(running: Running, conf: NetConf, work: Callable[[Answer], T]) -> tuple[Running, Callable[[], T]]:
    """Return what runs with what waits for its answer; one that is there already is worked on now."""

    def finish() -> T:
        return work(_answer(running.finish(IPAM_WAIT), conf))

    if not running.ended:
        return running, finish
    try:
        done = finish()
    except Exception as error:  # of any kind: what has been started must be known to be taken back
        return running, _raiser(error)
    return running, lambda: done


def _started(call: Call, start: Callable[[], T]) -> Callable[[], T]:
    """Start something, beside us where that can be; return what returns or raises what that did."""
    if call.context.beside:
        return call.context.beside(start)
    try:
        done = start()
    except (SriovError, OSError) as error:
        return _raiser(error)
    return lambda: done


def _joined(call: Call, start: Callable[[], T], running: ExitStack) -> Callable[[], T]:
    """Start something that uses our descriptors: ``running`` waits for its end, however we go on."""
    waiting = _started(call, start)
    running.callback(_ended, waiting)
    return waiting


def _ended(waiting: Callable[[], object]) -> None:
    try:
        waiting()
    except (SriovError, OSError):
        pass  # told where the result is needed


def _raiser(error: Exception) -> Callable[[], Any]:
    def late() -> None:
        raise error

    return late


def _settled(starting: Callable[[], tuple[Running, object]]) -> bool:
    """Wait until IPAM's ADD has ended, whatever comes of it; return whether it was ever started."""
    try:
        running, _ = starting()
    except (SriovError, OSError):
        return False
    running.settle(IPAM_GRACE)
    return True


def _ipam_take_back(call: Call, ipam: Ipam | Builtin, starting: Callable[[], tuple[Running, object]]) -> None:
    if _settled(starting):
        _ipam_undo(call, ipam)


def _answer(document: dict[str, Any] | None, conf: NetConf) -> Answer:
    where = f"the result of IPAM plugin {conf.ipam_type}"
    document = document or {}
    found = result.from_json(document, conf.version, error=IpamError, where=where)
    for number, route in enumerate(found.routes):
        if route.gw and (":" in route.gw) != (":" in route.dst):
            raise IpamError(
                f"{where}: routes[{number}].gw = {route.gw!r}: of another IP version than {route.dst}",
                "give a gateway of the same",
            )
    return Answer(result=found, extra=document.get("extra"))


def _ipam_undo(call: Call, ipam: Ipam | Builtin) -> None:
    try:
        ipam.run("DEL", IPAM_WAIT)
    except (SriovError, OSError) as error:
        call.log.error("IPAM could not be undone", plugin=ipam.kind, why=error)


def wish_of(call: Call, host: nl.Socket) -> pool.Wish:
    """Return what the configuration asks of the VF; ``host`` is a socket in our namespace."""
    conf = call.conf
    return pool.Wish(
        masters=conf.masters,
        vf=conf.vf,
        device_id=conf.device_id,
        cores=conf.cores,
        who=call.who,
        recover=lambda record: recover(call, record),
        examine=lambda vf: candidate.examine(host, vf, call.roots),
        real_name=lambda name: candidate.real_name(host, name),
        warn=call.log.warning,
    )


def _journaled(
    call: Call, choice: Choice, host: nl.Socket, undo: ExitStack, addresses: ExitStack
) -> Attachment:
    """Write down the VF's state and what is asked, before the first change."""
    asked, conf = call.request, call.conf
    record = attach.observe(
        host,
        choice,
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
            incarnation=locate.incarnation(choice.vf.pci, call.roots),
            boot=call.journal.boot(),
            token=call.context.token,
        ),
        call.roots,
    )
    call.step("read the VF's state", "kernel")
    if conf.cores:  # else they stay as they are
        masks = affinity.masks_of(record.pci, call.roots)
        record = record.replace(irqs=masks, pinned=affinity.plan(list(masks), conf.cores))
    call.journal.write(record)
    call.step("write the journal")
    undo.callback(_take_back, call, record, addresses)
    undo.callback(call.journal.drop, record)
    return record


def _take_back(call: Call, record: Attachment, addresses: ExitStack) -> None:
    """Undo an attach. Where that fails record and addresses stay, so that DEL or GC can try again."""
    try:
        latest = call.journal.again(record) or record
        detach.release(latest, call.where, call.roots, call.log)
        call.journal.remove(latest)
    except (SriovError, OSError) as error:
        addresses.pop_all()  # the VF may still answer for them
        call.log.error("the VF could not be brought home", pci=record.pci, pf=record.pf, why=error)


def _attached(call: Call, record: Attachment, means: Means, start: Start[Any]) -> Reply:
    """Configure and move the VF while IPAM runs, where that is possible, then set the addresses."""
    host, fd = means.host, means.netns
    with ExitStack() as running:

        def work(answer: Answer) -> tuple[Ready, nl.Socket]:
            pod = means.held.enter_context(nl.Socket(fd))
            return ready.prepare(call, record, answer.result), pod

        finish = None if needs_interface(call.conf.ipam_type) else start(work, running)
        call.step("start IPAM", "ipam")
        pinning = _pinned_beside(call, record, running)
        attach.configure(host, record)
        call.step("configure", "kernel")
        attach.move(host, record, fd)
        call.step("move", "kernel")
        made, pod = (finish or start(work, running))()
        call.step("wait for IPAM", "ipam")
        if any(":" in cidr for cidr in made.record.addresses):
            _enable_ipv6(fd, record.ifname)
        link = _addressed(record, host, pod, made.addressing)
        call.step("addresses and routes", "kernel")
        pinned = _pinned(call, record, pinning)
        call.step("pin the interrupts")
        if not made.holds(pinned, link):
            made = ready.prepare(call, pinned, made.given, link)
        call.journal.publish(made.record)
        made.tell()
        done = Reply(
            output=made.output,
            afterwards=_announcement(call, made.record),
            undelivered=lambda: _take_all_back(call),
        )
    call.step("journal, result")
    return done


def _addressed(record: Attachment, host: nl.Socket, pod: nl.Socket, addressing: Addressing) -> Link:
    # the kernel gives another index where the pod has a device with the host's
    index = netns.index_of(pod.fileno(), record.ifname)
    if index != addressing.ifindex:
        addressing = attach.addressing(index, addressing.addresses, addressing.routes)
    link = attach.address(pod, record, addressing)
    attach.verify(host, record, link)
    return link


def _enable_ipv6(fd: int, ifname: str) -> None:
    """Runtimes switch IPv6 off by default in namespaces; an address that is given must be possible."""
    try:
        nl.netns_write(fd, f"/proc/sys/net/ipv6/conf/{ifname}/disable_ipv6", "0")
    except OSError:
        pass  # no IPv6 in the kernel, or a read-only /proc/sys: if it matters, the address will be refused


def _pinned_beside(call: Call, record: Attachment, running: ExitStack) -> Callable[[], Any] | None:
    """Pin the interrupts that are there already while the kernel moves the device, where we may.

    ``running`` waits for the end of that: the undo of what fails must not be overtaken by it.
    """
    if not record.pinned or not call.context.beside:
        return None
    pinning = call.context.beside(lambda: affinity.apply(record.pinned, call.roots, call.log))
    running.callback(pinning)
    return pinning


def _pinned(call: Call, record: Attachment, pinning: Callable[[], Any] | None) -> Attachment:
    """Pin the interrupts, those that came with the bring-up, too; these are written down first."""
    if not call.conf.cores:
        return record
    affinity.warn_of_irqbalance(call.log)
    now = affinity.masks_of(record.pci, call.roots)
    wanted = affinity.plan(list(now), call.conf.cores)
    if wanted != record.pinned:
        record = record.replace(irqs=now | record.irqs, pinned=wanted)
        call.journal.write(record)
    if not pinning:
        return record.replace(pinned=affinity.apply(wanted, call.roots, call.log))
    taken = pinning()
    # an interrupt whose device was down may only have pretended to take its mask
    left = {number: wanted[number] for number in affinity.differing(wanted, call.roots)}
    return record.replace(pinned={**taken, **affinity.apply(left, call.roots, call.log)})


def _announcement(call: Call, record: Attachment) -> Callable[[], None] | None:
    if not record.addresses:
        return None

    def afterwards() -> None:
        from sriov_fast.sriov import announce  # late: nobody waits for it here

        fd = netns.open_netns(call.request.netns, call.context.netns_fd)
        try:
            announce.send(fd, record.ifname, record.mac, record.addresses)
        except OSError as error:  # the pod is gone already
            call.log.debug("not announced", why=error)
        finally:
            os.close(fd)

    return afterwards


def _take_all_back(call: Call) -> None:
    """Undo an ADD that nobody was told of; a later ADD of the same owner is not touched."""
    asked = call.request
    with call.owner_lock():
        record = call.journal.find(asked.container_id, asked.ifname)
        if record is not None and record.token == call.context.token:
            release(call, record)


# --- DEL


def delete(call: Call) -> Reply:
    """Bring everything back (SPEC, "DEL"); what is gone already is no fault."""
    asked = call.request
    with call.owner_lock():
        record = call.journal.find(asked.container_id, asked.ifname)
        call.step("check, lock")
        if record is None:
            _delete_unattached(call)
            return Reply()
        if record.state == BROKEN:
            return _release_broken(call, record)
        return release(call.as_added(record), record, defer=call.context.defer_release)


def _release_nothing(call: Call) -> None:
    """Let IPAM release an address that it may have given, though we know of no attachment.

    It gave none with files that root does not allow, so such a configuration keeps no pod from ending.
    """
    try:
        _ipam_release(call)()
    except RefusedError as error:
        call.log.warning("nothing was attached with this configuration, which is refused", why=error)


def _delete_unattached(call: Call) -> None:
    """Delete what has no record, or one that says that its VF could not be found."""
    asked = call.request
    stranded = call.journal.stranded(asked.container_id, asked.ifname)
    if stranded is None:
        _release_nothing(call)
        return
    with locks.acquire(call.roots.run, f"vf-{stranded.pci}", call.who):
        latest = call.journal.again(stranded)
        if latest is not None:
            recover(call, latest)


def _release_broken(call: Call, record: Attachment) -> Reply:
    """Release an attachment of which only the VF and its owner are known.

    The VF comes home, down; IPAM's DEL runs with the configuration that this request has. What the PF was
    told, and what the VF was before, nobody knows: the record is kept aside, and with it the VF.
    """
    call.log.error(
        "the record is broken: the VF comes home and is kept aside; `sriov-fast doctor` tells more",
        pci=record.pci,
    )
    return release(call, record)


def release(call: Call, record: Attachment, *, defer: bool = False) -> Reply:
    """Release VF and address. The record stays until both are, so that DEL or GC can try again.

    With ``defer``, the VF's way home, which waits in the kernel, is left to the reply's ``afterwards``.
    """
    with ExitStack() as held:
        held.enter_context(locks.acquire(call.roots.run, f"vf-{record.pci}", call.who))
        if not call.journal.has(record):
            return Reply()  # somebody finished it while we waited
        try:
            later = _release_held(call, record, defer=defer)
        except HiddenError as error:
            if record.state == BROKEN:
                raise  # there is not enough in the record to finish this later
            _strand(call, record, error)
            return Reply()
        if not defer:
            later()
            return Reply()
        lock = held.pop_all()

    def afterwards() -> None:
        with lock:
            try:
                later()
            except (SriovError, OSError) as error:
                call.log.error("the VF could not be brought home", pci=record.pci, pf=record.pf, why=error)

    return Reply(afterwards=afterwards)


def _strand(call: Call, record: Attachment, why: HiddenError) -> None:
    """Leave a VF that cannot be found where it is: its link off, its record and its address kept.

    ``recover`` brings it home when it appears, and gives the address back then: until then the VF may
    answer for it.
    """
    call.log.error("its VF and its address are kept until the VF is found", pci=record.pci, why=why)
    silent = record.replace(asked=record.asked.replace(link_state=detach.LINK_OFF.link_state))
    call.journal.write(silent)
    call.journal.strand(silent if detach.silence(record, call.log) else record)


def _release_held(call: Call, record: Attachment, *, defer: bool) -> Callable[[], None]:
    """Release a VF whose lock we hold, and its address; return what is left to do.

    IPAM's DEL runs beside the move; with ``defer`` it is waited for before. Its error is raised in the end.
    """
    with ExitStack() as home:
        vf = home.enter_context(detach.Release(record, call.where, call.roots, call.log))
        with ExitStack() as late:
            _quieten(call, vf, late)
            home.callback(vf.bring_home)
            if not defer:
                home.close()
                call.step("move home", "kernel")
        call.step("wait for IPAM", "ipam")
        if defer:
            record = call.journal.release(record)
            call.step("journal")
        moving = home.pop_all()

    def rest() -> None:
        moving.close()
        call.journal.remove(record)
        call.log.info("released", pf=record.pf, vf=record.vf, pci=record.pci)

    return rest


def _quieten(call: Call, vf: detach.Release, late: ExitStack) -> None:
    """Make the VF quiet and give its address back, for which ``late`` waits."""
    vf.find()
    through_vf = needs_interface(call.conf.ipam_type)
    if through_vf:
        late.callback(_ipam_release(call, wait=True))
    vf.quieten()
    call.step("quieten", "kernel")
    if not through_vf:
        late.callback(_ipam_release(call))
        call.step("start IPAM", "ipam")


def recover(call: Call, record: Attachment) -> bool:
    """Finish, for a VF whose lock we hold, what a request left; return whether the VF is home.

    That is one that was killed, or a DEL that could not find its VF. A fault is logged.
    """
    if not record.stranded:
        call.log.warning(
            "a request was cut short: its VF is brought home first", pci=record.pci, state=record.state
        )
    theirs = call.of(record)
    try:
        if record.state == HOMING and not record.stranded:  # its address was given back already
            detach.release(record, theirs.where, call.roots, call.log)
            call.journal.remove(record)
        else:
            _release_held(theirs, record, defer=False)()
    except HiddenError as error:
        call.log.debug("still not found", pci=record.pci, why=error)
        return False
    except (SriovError, OSError) as error:
        call.log.error("the VF could not be brought home", pci=record.pci, pf=record.pf, why=error)
        return False
    return True


def _ipam_release(call: Call, *, wait: bool = False) -> Callable[[], None]:
    """Start IPAM's DEL, which runs while the kernel moves the VF; return what waits for it.

    Its error is raised by that. With ``wait`` it has ended when this returns.
    """
    ipam = call.ipam()
    if ipam is None:
        return _nothing
    starting = _started(call, lambda: ipam.start("DEL"))

    def finish() -> None:
        starting().finish(IPAM_WAIT)

    if not wait:
        return finish
    try:
        finish()
    except (SriovError, OSError) as error:
        return _raiser(error)
    return _nothing


def _nothing() -> None:
    """Wait for nothing."""
