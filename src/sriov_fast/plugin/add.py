"""ADD: give a container a VF."""

from __future__ import annotations

from contextlib import ExitStack

from sriov_fast.cni import config, fields
from sriov_fast.common import descriptors
from sriov_fast.common.errors import (
    BusyError,
    ConfigError,
    EnvError,
    FileError,
    OccupiedError,
    SriovError,
    TryAgainError,
)
from sriov_fast.common.paths import is_auxiliary
from sriov_fast.common.record import Record
from sriov_fast.ipam.kinds import may_choose_vf, needs_interface
from sriov_fast.kernel.backend import nl
from sriov_fast.plugin.addresses import Addresses
from sriov_fast.plugin.context import MOVES, Reply
from sriov_fast.plugin.prepare import prepare
from sriov_fast.plugin.release import forget, recover, release, return_vf
from sriov_fast.vf import attach, candidate, driver_socket, find, irq, locks, modes, netns, select, tuning
from sriov_fast.vf.journal import ATTACHED, BROKEN, MACVLAN, PF, USERSPACE, Attachment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sriov_fast.common.executor import Scope, Task
    from sriov_fast.common.record import Link, Vf
    from sriov_fast.plugin.context import Call
    from sriov_fast.plugin.prepare import Prepared
    from sriov_fast.vf.attach import Addressing
    from sriov_fast.vf.driver_socket import DriverSocket
    from sriov_fast.vf.select import ReservedVf


class Access(Record):
    """A socket in the host's namespace and a descriptor of the pod's.

    ``pod_netns`` is -1 if a VF with a userspace driver does not need it. ``held`` is closed after the reply.
    """

    host: DriverSocket
    pod_netns: int
    held: ExitStack

    def pod_socket(self) -> DriverSocket:
        """Open a socket in the pod's namespace."""
        return self.held.enter_context(driver_socket.connect(self.host.patience, self.pod_netns))


def add(call: Call) -> Reply:
    """Give the container a VF (SPEC, "ADD"). If anything fails, everything is undone.

    If the VF turns out to have a device on top, another VF is tried.
    """
    if fields.POD_CORES in (call.conf.cores, call.conf.rps, call.conf.xps):
        from sriov_fast.plugin import pod_cores  # late: few configurations ask for it

        call = pod_cores.resolve(call)
    while True:
        try:
            return _add(call)
        except OccupiedError as error:
            if call.conf.device_id or call.conf.vf is not None:
                raise
            call.log.info("another VF is tried", why=error)
            call = call.replace(occupied=(*call.occupied, error.pci))


def _add(call: Call) -> Reply:
    with ExitStack() as held, ExitStack() as undo:
        host = held.enter_context(driver_socket.connect(driver_socket.Patience(call.ends)))
        pod_netns = _open_pod(call, host, held)
        _require_possible(call)
        held.enter_context(call.owner_lock())
        _await_return(call, _finish_interrupted(call))
        addresses = Addresses(call)
        # Undone last: an address may go to the next pod only when this pod's VF cannot send.
        undo.callback(addresses.give_back)
        if call.conf.ipam_type and may_choose_vf(call.conf.ipam_type):
            call = _with_choice_of_ipam(call, host, addresses)
        call.step("check, lock")
        reserved = _reserved(call, host)
        held.enter_context(reserved.lock)
        call = _for_device(call, reserved, pod_netns)
        call.step("choose the VF")
        call.demand_time()
        record = _journaled(call, reserved, host)
        undo.callback(_bring_back, call, record, addresses)
        undo.callback(call.journal.drop, record.pci)
        if record.device_info:
            from sriov_fast.plugin import device_info  # late: Multus asks for it, if a network says so

            device_info.write(record, call.roots)
        access = Access(host=host, pod_netns=pod_netns, held=held)
        with call.tasks() as tasks:
            prepared = _attach(call, record, access, addresses, tasks)
        undo.pop_all()
        return Reply(
            output=prepared.output,
            afterwards=(lambda: _announce(call, prepared.record)) if _is_announced(prepared.record) else None,
            undelivered=lambda: _undo_undelivered(call),
            held=held.pop_all(),
        )


def _attach(call: Call, record: Attachment, access: Access, addresses: Addresses, tasks: Scope) -> Prepared:
    """Give the pod its interface, run IPAM and prepare the reply meanwhile; then set the addresses."""
    if record.attach == USERSPACE:
        from sriov_fast.plugin import userspace

        return userspace.serve(call, record, access.host, addresses)
    mode = modes.entering(record)

    def plan() -> tuple[Prepared, DriverSocket]:
        answer = addresses.obtain()
        pod = access.pod_socket()
        return prepare(call, record, answer.result), pod

    planning: Task | None = None
    if not needs_interface(call.conf.ipam_type) and (mode.WAITS or addresses.wait):
        planning = tasks.submit(plan, waits=addresses.wait, hurry=addresses.hurry)
    call.step("start IPAM", "ipam")
    pinning = _start_pinning(call, record, tasks)
    mode.configure(access.host, record)
    call.step("configure", "kernel")
    call.demand_time()
    with MOVES:
        mode.enter(access.host, record, access.pod_netns)
    call.step(mode.ENTER, "kernel")
    if record.rdma:
        from sriov_fast.vf import rdma  # late: few configurations have this key

        rdma.enter(record, access.pod_netns)
    prepared, pod = planning.result() if planning else plan()
    call.step("wait for IPAM", "ipam")
    link = _set_addresses(prepared, access, pod, call.roots.proc)
    call.step("addresses and routes", "kernel")
    call.demand_time()
    pinned = _pinned(call, record, pinning)
    call.step("pin the interrupts")
    if call.conf.rps or call.conf.xps:
        pinned = _steered(call, pinned, access)
    if call.conf.enable_dad:
        from sriov_fast.vf import dad

        dad.settle(pod, prepared.record, call.wait(dad.LONGEST), call.log)
        call.step("check for duplicates", "kernel")
    if not prepared.holds(pinned, link):
        prepared = prepare(call, pinned, prepared.given, link)
    call.journal.publish(prepared.record)
    prepared.tell()
    call.step("journal, result")
    return prepared


# --- before the attach


def _open_pod(call: Call, host: nl.Socket, held: ExitStack) -> int:
    """Return a descriptor of the pod's namespace.

    If that cannot be opened and the request names a VF with a userspace driver, -1.
    """
    try:
        fd = netns.open_pod(call.request.netns, call.context.netns_fd, call.context.host_fd)
    except (EnvError, FileError):
        if select.names_userspace_vf(vf_request_of(call, host)):
            return -1
        raise
    held.callback(descriptors.close, fd)
    return fd


def _require_possible(call: Call) -> None:
    """Raise ConfigError for cores that cannot be used, an unknown sysctl, and a file that root forbids."""
    irq.require_online(call.conf.cores, call.roots)
    irq.require_online(call.conf.rps, call.roots, "rps")
    irq.require_online(call.conf.xps, call.roots, "xps")
    if call.conf.cores and call.conf.device_id and is_auxiliary(call.conf.device_id):
        msg = (
            f"cores: deviceID {call.conf.device_id} is an auxiliary device, whose interrupts cannot be pinned"
        )
        raise ConfigError(msg, "leave that out, or name a VF")
    tuning.require_known(call.conf.sysctl, call.roots.proc)
    if call.conf.device_info:
        from sriov_fast.plugin import device_info

        device_info.demand(call.conf.device_info)


def _reserved(call: Call, host: nl.Socket) -> ReservedVf:
    """Return the VF, or the PF with ``pfOnly``, with its lock."""
    if not call.conf.pf_only:
        return select.choose(vf_request_of(call, host))
    from sriov_fast.vf import whole_pf  # late: few networks want a PF

    return whole_pf.choose(vf_request_of(call, host))


def _for_device(call: Call, reserved: ReservedVf, pod_netns: int) -> Call:
    """Return the call with the attach mode of the reserved VF."""
    if not reserved.link.index:
        from sriov_fast.plugin import userspace  # late: few nodes have such VFs

        return userspace.accept(call, reserved)
    if pod_netns < 0:
        raise TryAgainError(f"VF {reserved.vf.pci} has got another driver meanwhile", "try again")
    return call


def _finish_interrupted(call: Call) -> list[str]:
    """Refuse a second ADD; undo a first one that was killed. Return the names of the journal's records."""
    asked, names = call.request, call.journal.names()
    record = call.journal.find(asked.container_id, asked.ifname, names)
    if record is None:
        return names
    if record.state == BROKEN:
        raise BusyError(
            f"container {asked.container_id} has {asked.ifname} already; VF {record.pci} has a broken record",
            "DEL it first; `sriov-fast doctor` shows what is wrong with the record",
            interface=record.ifname,
        )
    if record.state == ATTACHED and not (record.token and record.token == call.context.token):
        raise BusyError(
            f"container {asked.container_id} has {asked.ifname} already: {record.label}",
            "DEL it first",
            interface=record.ifname,
            vf=record.vf,
        )
    call.log.warning("an earlier ADD was interrupted: returning its VF to the host first", pci=record.pci)
    release(call.of(record), record)
    return call.journal.names()


def _await_return(call: Call, names: list[str]) -> None:
    """Wait for the VF that this container has given back: until it has left, its name is taken in the pod.

    Raises TryAgainError if the VF is not found: IPAM knows its address by the same owner, so a release of the
    one would release the address of the other as well.
    """
    for record in call.journal.returning(call.request.container_id, call.request.ifname, names):
        with call.vf_lock(record.pci):
            latest = call.journal.again(record)
            if latest is None or recover(call, latest):
                continue
            if latest.stranded and latest.ipam:
                raise TryAgainError(
                    f"container {record.container_id}: its earlier {record.ifname} is not deleted yet: "
                    f"{record.label} is not found",
                    "it comes back when its namespace ends; see which process or container holds that",
                    interface=record.ifname,
                    vf=record.vf,
                )


def _with_choice_of_ipam(call: Call, host: nl.Socket, addresses: Addresses) -> Call:
    """Run IPAM; return the call with the VF, VLAN and MAC of its ``extra``."""
    # A fault that is known already must not cost an address.
    if not call.conf.pf_only and not call.conf.device_id:
        select.present(vf_request_of(call, host).replace(warn=call.log.debug))
    with call.tasks() as tasks:
        answer = tasks.submit(addresses.obtain).result()
    return call.replace(conf=config.with_extra(call.conf, answer.extra))


def vf_request_of(call: Call, host: nl.Socket) -> select.VfRequest:
    """Return the conditions for the VF; ``host`` is a socket in the host's namespace."""
    conf = call.conf
    return select.VfRequest(
        journal=call.journal,
        roots=call.roots,
        holder=call.who,
        wait=lambda: call.wait(locks.WAIT),
        recover=lambda record: recover(call, record),
        examine=lambda vf: _examined(call, host, vf),
        real_name=lambda name: candidate.real_name(host, name),
        warn=call.log.warning,
        masters=conf.masters,
        vf=conf.vf,
        device_id=conf.device_id,
        cores=conf.cores,
    )


def _examined(call: Call, host: nl.Socket, vf: Vf) -> candidate.Device | None:
    """Return the device of a VF. An earlier attempt may have found a use of it."""
    device = candidate.examine(host, vf, call.roots)
    if device and vf.pci in call.occupied:
        return device.replace(use="a device in another namespace on top of it")
    return device


def _journaled(call: Call, reserved: ReservedVf, host: nl.Socket) -> Attachment:
    """Write the VF's present state and the request to the journal; return the record."""
    asked, conf = call.request, call.conf
    record = Attachment(
        container_id=asked.container_id,
        ifname=asked.ifname,
        pci=reserved.vf.pci,
        network=conf.name,
        netns=asked.netns,
        asked=conf.settings,
        mtu=conf.mtu,
        attach=PF if conf.pf_only else conf.attach,
        sysctl=conf.sysctl,
        promisc=conf.promisc,
        allmulti=conf.allmulti,
        ipam=conf.ipam_type,
        request={"args": asked.args_text, "path": list(asked.path), "config": conf.raw},
        incarnation=find.incarnation(reserved.vf.pci, call.roots),
        boot=call.journal.boot(),
        token=call.context.token,
    )
    if conf.device_info and not is_auxiliary(record.pci):
        from sriov_fast.plugin import device_info

        record = record.replace(device_info=device_info.missing(conf.device_info))
    record = modes.of(record).observe(host, reserved, record, call.roots)
    call.step("read the VF's state", "kernel")
    if conf.cores:  # without cores the interrupts stay as they are
        masks = irq.masks_of(record.pci, call.roots)
        record = record.replace(irqs=masks, pinned=irq.plan(list(masks), conf.cores))
    if conf.rps or conf.xps:
        from sriov_fast.vf import queues  # late: few configurations have these keys

        record = record.replace(before_queues=queues.masks(call.context.host_fd, record.host_name))
    if conf.rdma:
        from sriov_fast.vf import rdma

        record = rdma.observe(record, call.roots, call.log)
    call.journal.write(record)
    call.step("write the journal")
    return record


# --- in the pod


def _set_addresses(prepared: Prepared, access: Access, pod: DriverSocket, proc: str) -> Link:
    """Set addresses and routes; return the device as the kernel then shows it."""
    record = prepared.record
    has_ipv6 = any(":" in cidr for cidr in record.addresses)
    tuning.set_sysctls(access.pod_netns, record, proc, ipv6=has_ipv6)
    link = attach.address(pod, record, _addressing(prepared, pod))
    link = attach.verify(access.host, pod, record, link)
    return link.replace(index=record.ifindex) if record.attach == MACVLAN else link


def _addressing(prepared: Prepared, pod: nl.Socket) -> Addressing:
    """Return the prepared messages, with the device's index in the pod.

    The kernel gives the device another index if the pod has a device with the host's.
    """
    index = netns.index_of(pod.fileno(), prepared.record.ifname)
    made = prepared.addressing
    if index == made.ifindex:
        return made
    return attach.addressing(index, made.addresses, made.routes, made.flags, dad=made.dad)


def _start_pinning(call: Call, record: Attachment, tasks: Scope) -> Task | None:
    """Pin the interrupts that exist already during the move; None if the scope has no threads."""
    if not record.pinned or not tasks.threads:
        return None
    return tasks.submit(lambda: irq.apply(record.pinned, call.roots, call.log))


def _pinned(call: Call, record: Attachment, pinning: Task | None) -> Attachment:
    """Pin the remaining interrupts, such as those of the bring-up; their old masks are journaled first."""
    if not call.conf.cores:
        return record
    irq.warn_of_irqbalance(call.log)
    now = irq.masks_of(record.pci, call.roots)
    wanted = irq.plan(list(now), call.conf.cores)
    if wanted != record.pinned:
        record = record.replace(irqs=now | record.irqs, pinned=wanted)
        call.journal.write(record)
    if pinning is None:
        return record.replace(pinned=irq.apply(wanted, call.roots, call.log))
    taken = pinning.result()
    # an interrupt of a device that is down may report a mask that it did not take
    left = {number: wanted[number] for number in irq.differing(wanted, call.roots)}
    return record.replace(pinned={**taken, **irq.apply(left, call.roots, call.log)})


def _steered(call: Call, record: Attachment, access: Access) -> Attachment:
    """Set the masks of the queues."""
    from sriov_fast.vf import queues

    netns_fd, name = queues.place(record, access.pod_netns)
    wanted = queues.plan(list(queues.masks(netns_fd, name)), call.conf.rps, call.conf.xps)
    if call.conf.xps and not any(file.startswith("tx") for file in wanted):
        call.log.warning("xps is ignored: the device has one transmit queue", interface=name)
    queues.apply(netns_fd, name, wanted)
    return record.replace(queues=wanted)


# --- undo, and after the reply


def _bring_back(call: Call, record: Attachment, addresses: Addresses) -> None:
    """Undo an attach. If that fails, record and addresses stay, so that DEL or GC can try again."""
    try:
        latest = call.journal.again(record) or record
        return_vf(call, latest)
        forget(call, latest)
    except (SriovError, OSError) as error:
        addresses.keep()  # the VF may still answer for them
        call.log.error("the VF could not be returned to the host", pci=record.pci, pf=record.pf, why=error)


def _is_announced(record: Attachment) -> bool:
    return bool(record.addresses) and record.attach != USERSPACE


def _announce(call: Call, record: Attachment) -> None:
    """Announce the addresses to the network."""
    from sriov_fast.vf import announce  # late: after the reply

    fd = netns.open_netns(call.request.netns, call.context.netns_fd)
    try:
        announce.send(fd, record.ifname, record.mac, record.addresses)
    except OSError as error:  # the pod is gone already
        call.log.debug("not announced", why=error)
    finally:
        descriptors.close(fd)


def _undo_undelivered(call: Call) -> None:
    """Undo an ADD after its reply was not delivered. The attachment of a later ADD stays."""
    asked = call.request
    call = call.after_reply()
    with call.owner_lock():
        record = call.journal.find(asked.container_id, asked.ifname)
        if record is not None and record.token == call.context.token:
            release(call, record)
