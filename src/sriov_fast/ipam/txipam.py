"""``txipam``: addresses, and with them VF, VLAN and MAC, from a remote service.

The service is asked over HTTPS with what CNI_ARGS say of the pod: PodID and HostIP. Whatever is repeated is
the same request to it, so a lost reply costs no address. A release names the lease of what it gives back, so
one that is late takes nothing else (``leases``); and what cannot be given back now is written down and given
back later (``pending``).
"""

from __future__ import annotations

import time

from sriov_fast import cni_args, ipamd_api
from sriov_fast.beside import beside
from sriov_fast.errors import CheckError, ConfigError, IpamError, SriovError
from sriov_fast.ipam import hosts, leases, pending
from sriov_fast.ipam.builtin import Builtin, Done, read_routes, valid_attachments
from sriov_fast.ipam.keys import Keys, parse_ip, same_family, show_cidr, show_ip, wrong
from sriov_fast.ipam.service import Owner, Service, ServiceError, Settings, read_lease, read_settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sriov_fast.ipam.keys import Ip
    from sriov_fast.ipam.service import Answer
    from sriov_fast.log import Logger

    Given = tuple[Ip, int, Ip | None]

_PAY = 1.0  # seconds for what others owe, once the service is seen to answer
_NOT_NOTED = "a request may be on its way, which cannot be noted"
_WORTH = 0.05  # seconds that a release takes at least
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


class TxIpam(Builtin):
    """The addresses that the service at ``ipam.remote`` gives."""

    kind = "txipam"

    def start(self, command: str) -> Any:
        """Carry ``command`` out; a DEL only starts here, and runs while its caller waits for the kernel."""
        if command != "DEL":
            return super().start(command)
        return Started(lambda: super(TxIpam, self).start("DEL"))

    # --- the verbs

    def add(self) -> dict[str, Any]:
        """Return what the service gives. Nothing stays given where that fails."""
        settings, owner = self._settings(), self._owner()
        service = Service(settings, "ADD")
        self._remember(owner)
        late = pending.settle(self.state_dir, owner, settings.remotes, service.deadline)
        try:
            given = self._read(service.allocate(owner), owner)
        except ServiceError as error:
            late = max(late, self._late(service))
            if error.uncertain or late > time.time():
                self._take_back(service, owner, error, late)
            raise
        leases.remember(self.runtime_dir, owner, given.lease)
        if given.lease:
            pending.void(self.state_dir, owner, given.lease)
        if max(late, self._late(service)) > time.time():
            self._note(service, owner)
        return self._result(given)

    def delete(self) -> None:
        """Give back what this container's interface has, now or later."""
        settings = self._settings()
        service = Service(settings, "DEL")
        owners = self._owners()
        done = [self._release(service, owner) for owner in owners]
        leases.forget(self.runtime_dir, owners[0])
        if all(done):
            self._forget(owners[0], settings)
            self._pay(service)

    def check(self) -> None:
        """Raise unless the service knows the addresses of the previous result as this interface's."""
        settings, owner = self._settings(), self._owner()
        if self.config.get("prevResult") is None:
            raise ConfigError("prevResult is missing", "CHECK compares with it")
        known = {show_cidr(*item.cidr("address")) for item in self.keys.inner("prevResult").objects("ips")}
        try:
            given = self._read(Service(settings, "CHECK").find(owner), owner)
        except ServiceError as error:
            if error.kind != ipamd_api.NOT_FOUND:
                raise
            raise CheckError(error.msg, error.details) from error
        missing = [
            cidr for cidr in (show_cidr(ip, length) for ip, length, _ in given.ips) if cidr not in known
        ]
        if missing:
            raise CheckError(
                f"prevResult.ips lacks {', '.join(missing)}, which {self.config['ipam']['remote']} gave "
                f"to {owner.ifname} of container {owner.container_id}",
                "the runtime's memory and the service's differ; delete the pod and start it anew",
            )

    def status(self) -> None:
        """Raise unless the service is ready and has an address for this host, as far as it is known."""
        service = Service(self._settings(), "STATUS", retries=0)
        try:
            service.ready()
            self._demand_room(service)
        except ServiceError as error:
            error.code = ipamd_api.LIMITED if error.kind == ipamd_api.EXHAUSTED else ipamd_api.NOT_AVAILABLE
            raise
        self._pay(service)

    def collect(self) -> None:
        """Give back what this host has in this network besides the valid attachments, and what is owed."""
        valid = valid_attachments(self.keys)
        network, settings = self._network(), self._settings()
        service = Service(settings, "GC")
        log = self._log()
        pending.retry(self.state_dir, log, time.monotonic() + service.left() / 2)
        faults = []
        for host_ip in self._hosts():
            try:
                self._collect_host(service, network, host_ip, valid)
            except ServiceError as error:
                if error.final or error.kind == ipamd_api.FORBIDDEN:
                    log.warning("the service has nothing of this host", hostIP=host_ip, why=error.msg)
                else:
                    faults.append(error)
        log.close()
        leases.keep(self.runtime_dir, network, valid)
        if faults:
            raise faults[0]

    @staticmethod
    def _collect_host(service: Service, network: str, host_ip: str, valid: set[tuple[str, str]]) -> None:
        """Give back by their leases what a host has besides the valid (container ID, ifname)."""
        for owner, lease in service.held(network, host_ip):
            if (owner.container_id, owner.ifname) not in valid:
                service.release(owner, lease)

    # --- who asks

    def _settings(self) -> Settings:
        return read_settings(self.keys.inner("ipam"))

    def _network(self) -> str:
        name = self.keys.text("name")
        if not name or len(name) > 200 or not name[0].isalnum() or not _NAME.issuperset(name):
            raise wrong(
                "name", name, "no network's name", "start with a letter or digit; then also '_', '.', '-'"
            )
        return name

    def _owner(self) -> Owner:
        return Owner(
            network=self._network(),
            container_id=self.container_id,
            ifname=self.ifname,
            pod_id=self._pod_id(),
            host_ip=self._host_ip(),
        )

    def _owners(self) -> list[Owner]:
        """Return whom a DEL is for; it makes do without PodID and HostIP, as far as hosts are remembered."""
        try:
            pod_id = self._pod_id()
        except ConfigError:
            pod_id = ""
        owner = Owner(
            network=self._network(), container_id=self.container_id, ifname=self.ifname, pod_id=pod_id
        )
        return [owner.replace(host_ip=host_ip) for host_ip in self._hosts() or [""]]

    def _pod_id(self) -> str:
        given = cni_args.readable(self.args)
        for key in ("PodID", "K8S_POD_UID"):
            text = given.get(key.upper(), "")
            if len(text) > 253 or not text.isprintable():
                advice = "give at most 253 printable characters"
                raise wrong(f"CNI_ARGS {key}", text, "not a printable identifier", advice)
            if text:
                return text
        raise ConfigError(
            "CNI_ARGS PodID is missing", "txipam needs the pod's identifier: CNI_ARGS=PodID=...;HostIP=..."
        )

    def _host_ip(self) -> str:
        """Return HostIP of CNI_ARGS, or else of ``ipam.hostIP``."""
        text = cni_args.readable(self.args).get("HOSTIP", "")
        where = "CNI_ARGS HostIP" if text else "ipam.hostIP"
        text = text or self.keys.inner("ipam").text("hostIP")
        if not text:
            raise ConfigError(
                "CNI_ARGS HostIP is missing",
                "txipam needs this node's address: CNI_ARGS=PodID=...;HostIP=...",
            )
        try:
            return show_ip(parse_ip(text))
        except ValueError:
            advice = "give this node's address, such as 10.0.0.1 or fd00::1"
            raise wrong(where, text, "not an IP address", advice) from None

    def _hosts(self) -> list[str]:
        """Return the HostIP that is given, or else those that ADDs were given."""
        try:
            return [self._host_ip()]
        except ConfigError:
            return hosts.remembered(self.state_dir, self._network())

    def _remember(self, owner: Owner) -> None:
        try:
            hosts.remember(self.state_dir, owner.network, owner.host_ip)
        except OSError as error:
            self._warn("HostIP cannot be remembered for GC", file=error.filename, why=error.strerror)

    # --- giving back

    def _release(self, service: Service, owner: Owner) -> bool:
        """Give an address back; return False where something is left to do, which is written down then."""
        lease = leases.recall(self.runtime_dir, owner)
        try:
            if not (lease and service.release(owner, lease)):
                lease = ""  # it has another one, if any
                service.give_back(owner)
        except SriovError as error:
            if getattr(error, "final", False):
                self._warn("the service has no address to take back", why=error.msg)
                return True
            self._owe(pending.Release(owner=owner, settings=service.settings, lease=lease), error)
            self._warn("the address is given back later", why=error.msg, state=self.state_dir)
            return False
        return True

    @staticmethod
    def _late(service: Service) -> float:
        """Return until when (Unix time) an ask that had no reply may be on its way; 0 for none."""
        return time.time() + pending.LATE if service.uncertain else 0.0

    def _forget(self, owner: Owner, settings: Settings) -> None:
        try:
            pending.forget(self.state_dir, owner, settings.remotes)
        except OSError as error:
            self._warn(_NOT_NOTED, file=error.filename, why=error.strerror)

    def _note(self, service: Service, owner: Owner) -> None:
        """Note that an earlier try may still be on its way, though a later one was answered."""
        due = time.time() + pending.LATE
        late = pending.Release(owner=owner, settings=service.settings, due=due, live=True)
        try:
            pending.owe(self.state_dir, late)
        except OSError as error:
            self._warn(_NOT_NOTED, file=error.filename, why=error.strerror)

    def _owe(self, release: pending.Release, why: SriovError) -> None:
        try:
            pending.owe(self.state_dir, release)
        except OSError as error:
            raise IpamError(
                why.msg,
                f"{why.details}; and it cannot be noted for later: {error.filename}: {error.strerror}",
                code=ipamd_api.TRY_AGAIN,
                errno=error.errno or 0,
            ) from error

    def _take_back(self, service: Service, owner: Owner, why: ServiceError, late: float) -> None:
        """Give back an address that nobody knows of, and once more after ``late`` (Unix time).

        Till then a request may be on its way that brings another.
        """
        try:
            self._owe(pending.Release(owner=owner, settings=service.settings, due=late), why)
        except IpamError as error:
            why.details = error.details
        left = service.left()
        if left <= _WORTH:
            return
        again = Service(service.settings.replace(timeout=left), "ADD", retries=0)
        try:
            again.give_back(owner)
        except SriovError:
            pass  # what is to be told is why the ADD failed
        else:
            self._forget(owner, service.settings)

    def _pay(self, service: Service) -> None:
        """Give back what is owed, now that the service is seen to answer."""
        if next(pending.owed(self.state_dir), None) is None:
            return
        log = self._log()
        pending.retry(self.state_dir, log, time.monotonic() + min(_PAY, service.left()))
        log.close()

    # --- answers

    def _result(self, given: Allocation) -> dict[str, Any]:
        return self.result(given.ips, given.routes, given.dns) | (
            {"extra": given.extra} if given.extra else {}
        )

    def _read(self, answer: Answer, owner: Owner) -> Allocation:
        """Return what is in an answer, every value checked."""
        body = answer.body()
        try:
            for key in ("network", "container_id", "ifname", "pod_id"):
                if body.text(key) not in ("", getattr(owner, key)):
                    raise wrong(body.place(key), body.obj[key], f"asked for {getattr(owner, key)}", "")
            found = Allocation(body)
            self.one_each([ip[0] for ip, _, _ in found.ips])
        except ConfigError as error:
            raise answer.unexpected(f"answered with an allocation that cannot be: {error.msg}") from error
        return found

    def _demand_room(self, service: Service) -> None:
        """Raise unless one of the hosts has a free address."""
        faults = []
        for host_ip in self._hosts():
            try:
                service.status(self._network(), host_ip)
            except ServiceError as error:
                faults.append(error)
            else:
                return
        if faults:
            raise faults[0]

    # --- the log

    def _log(self) -> Logger:
        from sriov_fast.log import Logger  # late: an ADD has nothing to tell

        context = {
            "containerID": self.container_id,
            "ifname": self.ifname,
            "network": self.config.get("name"),
        }
        level, file = self.config.get("logLevel"), self.config.get("logFile")
        path = file if isinstance(file, str) and file.startswith("/") else ""
        known = {key: value for key, value in context.items() if value}
        return Logger(str(level or "info"), path, known, self.stderr)

    def _warn(self, what: str, **facts: object) -> None:
        log = self._log()
        log.warning(what, **facts)
        log.close()


class Allocation:
    """What the service gave; ConfigError names what cannot be in it."""

    def __init__(self, body: Keys) -> None:
        self.ips: list[Given] = [_address(item) for item in body.objects("ips")]
        if not self.ips:
            raise wrong(body.place("ips"), body.obj.get("ips"), "no address", "")
        self.lease = read_lease(body)
        self.routes = read_routes(body)
        dns = body.inner("dns")
        names: dict[str, Any] = {key: dns.texts(key) for key in ("nameservers", "search", "options")}
        names["domain"] = dns.text("domain")
        self.dns = {key: value for key, value in names.items() if value}
        extra = body.inner("extra")
        chosen: dict[str, Any] = {"vf": extra.number("vf", 65535), "vlan": extra.number("vlan", 4094)}
        chosen["mac"] = extra.text("mac") or None
        self.extra = {key: value for key, value in chosen.items() if value is not None}


def _address(item: Keys) -> Given:
    ip, length = item.cidr("address")
    gateway = item.ip("gateway")
    same_family(gateway, ip, item.place("gateway"))
    return ip, length, gateway


class Started:
    """A verb that is carried out beside its caller; what ``delegate.Running`` is for a process.

    It ends by itself, within its own time limit.
    """

    ended = False

    def __init__(self, work: Callable[[], Done]) -> None:
        self._wait = beside(work)

    def finish(self, timeout: float) -> dict[str, Any] | None:
        """Wait, and return the result or raise what went wrong."""
        return self._wait().finish()

    def settle(self, grace: float) -> None:
        """Wait until it has ended, whatever comes of it."""
        try:
            self._wait()
        except (SriovError, OSError):
            pass  # the caller has a fault of its own to tell of

    def cancel(self) -> None:
        """Leave it alone: it undoes nothing half way."""
