"""The address service against a model: requests in random order to two replicas, with clock jumps."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from ipamd_kit import HOST, Clock, Etcd, ask, config, made

from sriov_fast.ipamd.errors import Conflict, Exhausted
from sriov_fast.ipamd.service import Service, open_service

GRACE = 30
POD_FIXED = "ns/fixed"
ALL = {f"10.1.0.{at}" for at in range(1, 15)}
SOME = {f"10.1.0.{at}" for at in range(4, 9)}
NARROW = {"ranges": [{"start": "10.1.0.4", "end": "10.1.0.8"}]}

# Each configuration: the addresses of the ranges, and the address assigned to POD_FIXED.
CONFIGS: list[tuple[set[str], str | None]] = [
    (ALL, None),
    (ALL, "10.1.0.5"),
    (SOME, None),
    (SOME, "10.1.0.12"),
]

containers = st.integers(0, 30)
pods = st.sampled_from(["ns/a", "ns/b", "ns/c", "", POD_FIXED])


def document(ranges: set[str], assigned: str | None) -> dict[str, Any]:
    fixed = [{"pod_id": POD_FIXED, "ips": [assigned]}] if assigned else []
    return config("10.1.0.0/28", grace=GRACE, assignments=fixed, pool=NARROW if ranges is SOME else {})


class Model(RuleBasedStateMachine):
    url: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp()
        self.clock = Clock()
        self.runner = asyncio.Runner()
        url = self.url.format(directory=self.directory, unique=uuid4().hex)
        self.services = [self.run(open_service(url, clock=self.clock)) for _ in range(2)]
        self.ranges, self.assigned = CONFIGS[0]
        self.held: dict[tuple[int, str], tuple[str, str]] = {}  # owner: address, pod
        self.leases: dict[tuple[int, str], str] = {}
        self.late: list[tuple[tuple[int, str], str]] = []  # completed releases, to be repeated
        self.waiting: dict[str, tuple[str, str, float]] = {}  # address: pod, interface, time of release
        self.perhaps: set[str] = set()  # in ``waiting``, but perhaps without a grace in the service
        self.run(self.services[0].configure(made(document(*CONFIGS[0])), None))

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    def teardown(self) -> None:
        try:
            self.fill()
        finally:
            for service in self.services:
                self.run(service.close())
            self.runner.close()
            shutil.rmtree(self.directory)

    def fill(self) -> None:
        """Release all owners; assert that every usable address can then be allocated exactly once."""
        for container, ifname in self.held:
            assert self.run(self.services[0].release(("n", f"c{container}", ifname), HOST))
        found = set()
        for at in range(len(self.usable)):
            allocation, _ = self.run(self.services[at % 2].allocate(ask(f"fill{at}", "")))
            found.add(allocation.ips[0].address.partition("/")[0])
        assert found == self.usable
        with pytest.raises(Exhausted):
            self.run(self.services[0].allocate(ask("more", "")))

    @property
    def usable(self) -> set[str]:
        return self.ranges - {self.assigned}

    @property
    def taken(self) -> set[str]:
        return {address for address, _ in self.held.values()}

    def graced(self) -> dict[str, tuple[str, str]]:
        """Return each address in its grace, with its pod and interface."""
        return {
            address: (pod, ifname)
            for address, (pod, ifname, since) in self.waiting.items()
            if pod and self.clock.now < since + GRACE and address in self.usable
        }

    @rule(container=containers, ifname=st.sampled_from(["eth0", "eth1"]), pod=pods, replica=st.integers(0, 1))
    def allocate(self, container: int, ifname: str, pod: str, replica: int) -> None:
        service, owner = self.services[replica], (container, ifname)
        before = self.held.get(owner)
        if before is not None and before[1] != pod:
            with pytest.raises(Conflict, match="pod_id"):
                self.run(service.allocate(ask(container, pod, ifname=ifname)))
        elif before is not None:
            allocation, created = self.run(service.allocate(ask(container, pod, ifname=ifname)))
            assert (allocation.ips[0].address, created) == (f"{before[0]}/28", False)
            assert allocation.lease == self.leases[owner]
        elif pod == POD_FIXED and self.assigned:
            self.allocate_fixed(service, owner)
        else:
            self.allocate_any(service, owner, pod)

    def allocate_fixed(self, service: Service, owner: tuple[int, str]) -> None:
        assert self.assigned
        if self.assigned in self.taken:
            with pytest.raises(Conflict, match=self.assigned):
                self.run(service.allocate(ask(owner[0], POD_FIXED, ifname=owner[1])))
        else:
            allocation, _ = self.run(service.allocate(ask(owner[0], POD_FIXED, ifname=owner[1])))
            assert allocation.ips[0].address == f"{self.assigned}/28"
            self.take(owner, self.assigned, POD_FIXED, allocation.lease)

    def allocate_any(self, service: Service, owner: tuple[int, str], pod: str) -> None:
        graced, free = self.graced(), self.usable - self.taken
        if not free:
            with pytest.raises(Exhausted, match="'a'"):
                self.run(service.allocate(ask(owner[0], pod, ifname=owner[1])))
            return
        allocation, created = self.run(service.allocate(ask(owner[0], pod, ifname=owner[1])))
        address = allocation.ips[0].address.partition("/")[0]
        assert created
        assert address in free
        mine = {at for at, whose in graced.items() if whose == (pod, owner[1])}
        if mine - self.perhaps:
            assert address in mine
        elif address in graced and address not in self.perhaps:
            assert not free - graced.keys() - self.perhaps, "an address was free that waits for nobody"
        self.take(owner, address, pod, allocation.lease)

    def take(self, owner: tuple[int, str], address: str, pod: str, lease: str) -> None:
        assert lease not in {*self.leases.values(), *(old for _, old in self.late)}
        self.held[owner] = (address, pod)
        self.leases[owner] = lease
        self.waiting.pop(address, None)
        self.perhaps.discard(address)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), replica=st.integers(0, 1), named=st.booleans())
    def release(self, data: st.DataObject, replica: int, named: bool) -> None:
        owner = data.draw(st.sampled_from(sorted(self.held)))
        lease = self.leases[owner] if named else None
        with pytest.raises(Conflict, match="host_ip"):
            self.run(self.services[replica].release(("n", f"c{owner[0]}", owner[1]), "10.9.9.9"))
        assert self.run(self.services[replica].release(("n", f"c{owner[0]}", owner[1]), HOST, lease=lease))
        assert not self.run(self.services[1 - replica].release(("n", f"c{owner[0]}", owner[1]), HOST))
        self.free(owner)

    @precondition(lambda self: self.late)
    @rule(data=st.data(), replica=st.integers(0, 1))
    def release_late(self, data: st.DataObject, replica: int) -> None:
        """Assert that a repeated release with a former lease releases nothing."""
        owner, lease = data.draw(st.sampled_from(self.late))
        claim = ("n", f"c{owner[0]}", owner[1])
        assert not self.run(self.services[replica].release(claim, HOST, lease=lease))

    def free(self, owner: tuple[int, str]) -> None:
        self.late.append((owner, self.leases.pop(owner)))
        address, pod = self.held.pop(owner)
        if address in self.usable:
            self.waiting[address] = (pod, owner[1], self.clock.now)
            if pod == POD_FIXED:  # possibly from an assignment, hence without a grace
                self.perhaps.add(address)

    @rule(seconds=st.sampled_from([1, 10, GRACE - 1, GRACE, 3 * GRACE]))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds

    @rule(which=st.sampled_from(CONFIGS), replica=st.integers(0, 1))
    def configure(self, which: tuple[set[str], str | None], replica: int) -> None:
        self.perhaps |= self.waiting.keys() - self.usable
        self.run(self.services[replica].configure(made(document(*which)), None))
        self.ranges, self.assigned = which
        self.perhaps |= self.waiting.keys() - self.usable

    @rule(replica=st.integers(0, 1))
    def backup(self, replica: int) -> None:
        self.run(self.services[replica].load(self.run(self.services[1 - replica].export())))
        self.perhaps |= self.waiting.keys() - self.usable

    @invariant()
    def it_holds_what_was_acknowledged(self) -> None:
        found = self.run(self.services[0].allocations("n"))
        assert {
            (int(it.container_id[1:]), it.ifname): (it.ips[0].address[:-3], it.pod_id) for it in found
        } == self.held
        assert len(self.taken) == len(self.held), "an address has two owners"
        leases = {
            (it.container_id, it.ifname): it.lease for it in self.run(self.services[1].owners("n", HOST))
        }
        assert leases == {(f"c{at}", ifname): lease for (at, ifname), lease in self.leases.items()}
        (use,) = self.run(self.services[1].usage())
        assert use.total == len(self.ranges)
        counted = self.taken & self.ranges - {
            address for address, pod in self.held.values() if pod == POD_FIXED
        }
        assert use.used >= min(use.total, len(counted))


# `make fuzz` sets a larger number.
EXAMPLES = int(os.environ.get("SRIOV_FAST_EXAMPLES", "3"))
pytestmark = pytest.mark.hypothesis


def check(url: str, examples: int) -> None:
    machine = type("Model", (Model,), {"url": url})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_sqlite_does_as_the_model() -> None:
    check("sqlite://{directory}/ipam.db", EXAMPLES)


def test_etcd_does_as_the_model(etcd: Etcd) -> None:
    check(f"{etcd.url}?prefix={{unique}}", EXAMPLES // 3)
