"""The IPAM plugin ``txipam``: addresses, and optionally VF, VLAN and MAC, from a remote address service.

The requests carry PodID and HostIP of CNI_ARGS. A repeated request is the same to the service, so a lost
reply costs no address. A release names the lease of its allocation, so a late one frees nothing else
(``leases``). A release that fails is stored and sent again later (``outbox``).
"""

from __future__ import annotations

import time

from sriov_fast import ipamd_api
from sriov_fast.common import cni_args
from sriov_fast.common.errors import CheckError, ConfigError, IpamError, SriovError
from sriov_fast.common.json_object import label, valid_attachments
from sriov_fast.ipam.builtin import Builtin, read_address, read_dns, read_routes
from sriov_fast.ipam.keys import Keys, as_value, check_ip, show_cidr, show_ip, wrong
from sriov_fast.ipam.txipam import hosts, leases, outbox
from sriov_fast.ipam.txipam.client import Client, Owner, ServiceError, read_lease
from sriov_fast.ipam.txipam.settings import Settings, read_settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sriov_fast.common.log import Logger
    from sriov_fast.ipam.builtin import Given

_FLUSH = 1.0  # seconds for the outbox, after the service has answered
_FORGOTTEN = "HostIP cannot be remembered for GC"
_NOT_NOTED = "a request may be on its way, which cannot be noted"
_WORTH = 0.05  # seconds; the shortest time for a release


class TxIpam(Builtin):
    """The plugin of one request; the service is at ``ipam.remote``."""

    kind = "txipam"
    waits = True  # for the service

    # --- the verbs

    def add(self) -> dict[str, Any]:
        """Allocate addresses and return the result. A failed ADD leaves no allocation behind."""
        settings, owner = self._settings(), self._owner()
        client = Client(settings, "ADD")
        self._noted(_FORGOTTEN, hosts.remember, owner.network, owner.host_ip)
        late = outbox.flush_owner(self.state_dir, owner, settings.remotes, client.deadline)
        try:
            given = client.allocate(owner).read(lambda body: self._allocation(body, owner))
        except ServiceError as error:
            late = max(late, self._late(client))
            if error.uncertain or late > time.time():
                self._take_back(client, owner, error, late)
            raise
        leases.remember(self.runtime_dir, owner, given.lease)
        if given.lease:
            outbox.discard(self.state_dir, owner, given.lease)
        if max(late, self._late(client)) > time.time():
            self._note(client, owner)
        found = self.result(given.ips, given.routes, given.dns)
        return found | {"extra": given.extra} if given.extra else found

    def delete(self) -> None:
        """Release the addresses of this container's interface, now or later."""
        settings = self._settings()
        client = Client(settings, "DEL")
        owners = self._owners()
        done = [self._release(client, owner) for owner in owners]
        leases.forget(self.runtime_dir, owners[0])
        if all(done):
            self._complete(owners[0], settings)
            self._flush(client)

    def check(self) -> None:
        """Raise unless the service knows the addresses of the previous result as this interface's."""
        settings, owner = self._settings(), self._owner()
        known = {show_cidr(*item.cidr("address")) for item in self.given_before()}
        try:
            given = Client(settings, "CHECK").find(owner).read(lambda body: self._allocation(body, owner))
        except ServiceError as error:
            if error.kind != ipamd_api.NOT_FOUND:
                raise
            raise CheckError(error.msg, error.details) from error
        missing = [cidr for ip, length, _ in given.ips if (cidr := show_cidr(ip, length)) not in known]
        if missing:
            raise CheckError(
                f"prevResult.ips lacks {', '.join(missing)}, which {', '.join(settings.remotes)} gave "
                f"to {owner.ifname} of container {owner.container_id}",
                "the runtime's memory and the service's differ; delete the pod and start it anew",
            )

    def status(self) -> None:
        """Raise unless the service is ready and has an address for this host, if its HostIP is known."""
        client = Client(self._settings().replace(retries=0), "STATUS")
        try:
            client.ready()
            self._demand_room(client)
        except ServiceError as error:
            error.code = ipamd_api.LIMITED if error.kind == ipamd_api.EXHAUSTED else ipamd_api.NOT_AVAILABLE
            raise
        self._flush(client)

    def collect(self) -> None:
        """Release this host's allocations in this network but the valid attachments'; flush the outbox."""
        valid = set(valid_attachments(self.keys))
        network, settings = self.network(), self._settings()
        client = Client(settings, "GC")
        log = self._log()
        outbox.flush(self.state_dir, log, time.monotonic() + client.left() / 2)
        faults = []
        for host_ip in self._hosts():
            try:
                self._collect_host(client, network, host_ip, valid)
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
    def _collect_host(client: Client, network: str, host_ip: str, valid: set[tuple[str, str]]) -> None:
        """Release by lease the allocations of a host but those of the valid (container ID, ifname)."""
        for owner, lease in client.held(network, host_ip):
            if (owner.container_id, owner.ifname) not in valid:
                client.release(owner, lease)

    # --- the request

    def _settings(self) -> Settings:
        settings = read_settings(self.keys.inner("ipam"))
        return settings.replace(timeout=self.wait(settings.timeout))

    def _owner(self) -> Owner:
        return Owner(
            network=self.network(),
            container_id=self.container_id,
            ifname=self.ifname,
            pod_id=self._pod_id(),
            host_ip=self._host_ip(),
        )

    def _owners(self) -> list[Owner]:
        """Return the owners of a DEL, one for each remembered host if HostIP is missing.

        PodID may be missing as well.
        """
        try:
            pod_id = self._pod_id()
        except ConfigError:
            pod_id = ""
        owner = Owner(
            network=self.network(), container_id=self.container_id, ifname=self.ifname, pod_id=pod_id
        )
        return [owner.replace(host_ip=host_ip) for host_ip in self._hosts() or [""]]

    def _pod_id(self) -> str:
        given = cni_args.readable(self.args)
        for key in ("PodID", "K8S_POD_UID"):
            text = as_value(label, given.get(key.upper(), ""), f"CNI_ARGS {key}")
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
        return show_ip(as_value(check_ip, text, where))

    def _hosts(self) -> list[str]:
        """Return the given HostIP, or else those of earlier ADDs."""
        try:
            return [self._host_ip()]
        except ConfigError:
            return hosts.remembered(self.state_dir, self.network())

    # --- releases

    def _release(self, client: Client, owner: Owner) -> bool:
        """Release an address; return False if the release failed and is in the outbox."""
        lease = leases.recall(self.runtime_dir, owner)
        try:
            if not (lease and client.release(owner, lease)):
                lease = ""  # the owner has another lease, or none
                client.release_current(owner)
        except SriovError as error:
            if getattr(error, "final", False):
                self._warn("the service has no address to take back", why=error.msg)
                return True
            self._enqueue(outbox.QueuedRelease(owner=owner, settings=client.settings, lease=lease), error)
            self._warn("the address is given back later", why=error.msg, state=self.state_dir)
            return False
        return True

    @staticmethod
    def _late(client: Client) -> float:
        """Return until when (Unix time) a request without a reply may reach the service; 0 for none."""
        return time.time() + outbox.IN_FLIGHT if client.uncertain else 0.0

    def _complete(self, owner: Owner, settings: Settings) -> None:
        self._noted(_NOT_NOTED, outbox.complete, owner, settings.remotes)

    def _note(self, client: Client, owner: Owner) -> None:
        """Store that an earlier try may still reach the service, though a later one was answered."""
        due = time.time() + outbox.IN_FLIGHT
        late = outbox.QueuedRelease(owner=owner, settings=client.settings, due=due, live=True)
        self._noted(_NOT_NOTED, outbox.enqueue, late)

    def _noted(self, failed: str, write: Callable[..., None], *facts: object) -> None:
        """Write facts to the state directory; an error is only logged."""
        try:
            write(self.state_dir, *facts)
        except OSError as error:
            self._warn(failed, file=error.filename, why=error.strerror)

    def _enqueue(self, release: outbox.QueuedRelease, why: SriovError) -> None:
        try:
            outbox.enqueue(self.state_dir, release)
        except OSError as error:
            raise IpamError(
                why.msg,
                f"{why.details}; and it cannot be noted for later: {error.filename}: {error.strerror}",
                code=ipamd_api.TRY_AGAIN,
                errno=error.errno or 0,
            ) from error

    def _take_back(self, client: Client, owner: Owner, why: ServiceError, late: float) -> None:
        """Release the address of a failed ADD now, and once more after ``late`` (Unix time).

        Until then an earlier request may still allocate another.
        """
        try:
            self._enqueue(outbox.QueuedRelease(owner=owner, settings=client.settings, due=late), why)
        except IpamError as error:
            why.details = error.details
        left = client.left()
        if left <= _WORTH:
            return
        again = Client(client.settings.replace(timeout=left, retries=0), "ADD")
        try:
            again.release_current(owner)
        except SriovError:
            pass  # the caller raises the ADD's error
        else:
            self._complete(owner, client.settings)

    def _flush(self, client: Client) -> None:
        """Flush the outbox after the service has answered."""
        if next(outbox.entries(self.state_dir), None) is None:
            return
        log = self._log()
        outbox.flush(self.state_dir, log, time.monotonic() + min(_FLUSH, client.left()))
        log.close()

    # --- answers

    def _allocation(self, body: Keys, owner: Owner) -> Allocation:
        """Return the owner's allocation, or raise ConfigError."""
        for key in ("network", "container_id", "ifname", "pod_id"):
            if body.text(key) not in ("", getattr(owner, key)):
                raise wrong(body.place(key), body.get(key), f"asked for {getattr(owner, key)}", "")
        found = Allocation(body)
        self.one_each([ip[0] for ip, _, _ in found.ips])
        return found

    def _demand_room(self, client: Client) -> None:
        """Raise unless one of the hosts has a free address."""
        faults = []
        for host_ip in self._hosts():
            try:
                client.status(self.network(), host_ip)
            except ServiceError as error:
                faults.append(error)
            else:
                return
        if faults:
            raise faults[0]

    # --- the log

    def _log(self) -> Logger:
        from sriov_fast.common.log import Logger  # late: an ADD seldom logs

        context = {
            "containerID": self.container_id,
            "ifname": self.ifname,
            "network": self.keys.get("name"),
        }
        level, file = self.keys.get("logLevel"), self.keys.get("logFile")
        path = file if isinstance(file, str) and file.startswith("/") else ""
        known = {key: value for key, value in context.items() if value}
        return Logger(str(level or "info").lower(), path, known, self.stderr)

    def _warn(self, what: str, **facts: object) -> None:
        log = self._log()
        log.warning(what, **facts)
        log.close()


class Allocation:
    """An allocation of the service. ConfigError names an invalid value."""

    def __init__(self, body: Keys) -> None:
        self.ips: list[Given] = [read_address(item) for item in body.objects("ips")]
        if not self.ips:
            raise wrong(body.place("ips"), body.get("ips"), "no address", "")
        self.lease = read_lease(body)
        self.routes = read_routes(body)
        self.dns = read_dns(body.inner("dns"))
        extra = body.inner("extra")
        chosen: dict[str, Any] = {"vf": extra.number("vf", 65535), "vlan": extra.number("vlan", 4094)}
        chosen["mac"] = extra.text("mac") or None
        self.extra = {key: value for key, value in chosen.items() if value is not None}
