"""Prometheus metrics of the resident server; imported only with ``serve --metrics``.

The threads of the server count requests here after the reply. Everything about VFs, records and locks is read
by the scrape itself, so the metrics cost nothing while nobody asks for them.
"""

from __future__ import annotations

import os
import platform
import socket
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from sriov_fast import __version__
from sriov_fast.common import json
from sriov_fast.common.errors import SriovError, is_there
from sriov_fast.common.paths import Roots
from sriov_fast.common.record import Vf
from sriov_fast.common.trace import Steps
from sriov_fast.kernel.backend import sysfs
from sriov_fast.server import sockets
from sriov_fast.server import vf_counters as counters_of_vfs
from sriov_fast.server.histogram import Histogram
from sriov_fast.vf import locks, state, uplink
from sriov_fast.vf.journal import ATTACHED, ATTACHING, BROKEN, RETURNING, Journal
from sriov_fast.vf.state import FREE, USED

CONTENT_TYPE = CONTENT_TYPE_LATEST
VERBS = frozenset(("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"))
VF_STATES = (FREE, ATTACHED, RETURNING, USED, BROKEN)
RECORD_STATES = (ATTACHING, ATTACHED, RETURNING, BROKEN)
_LABELS = ("pf", "vf", "direction")
_COUNTED = {"packets": "Packets of a VF", "bytes": "Bytes of a VF", "dropped": "Dropped packets of a VF"}
_NO_CODE = 999  # of an error that is not CNI's JSON


class Metrics:
    """All metrics of one server, in their own registry.

    ``running`` returns the number of requests that are carried out now; more wait in ``listeners``.
    """

    def __init__(
        self,
        roots: Roots,
        running: Callable[[], int],
        listeners: Sequence[socket.socket] = (),
        *,
        vf_counters: bool = False,
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each counter
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        info = Info("sriov_fast_build", "Version of the server", registry=registry)
        info.info({"version": __version__, "python": platform.python_version()})
        self._requests = Counter(
            "sriov_fast_requests",
            "Requests answered; code is CNI's error code, 0 for success",
            ("verb", "code"),
            registry=registry,
        )
        self._seconds = Histogram(
            "sriov_fast_request_seconds", "Time from the first byte of a request to its reply", "verb"
        )
        self._steps = Histogram("sriov_fast_step_seconds", "Time of each step of a request", "step", "verb")
        registry.register(_Process(running, listeners))
        errors = Tally(dict.fromkeys(("journal", "pf"), 0))
        if vf_counters:
            errors["vf_counters"] = 0
            registry.register(_Counters(roots, errors))
        registry.register(_Node(roots, errors))

    def served(self, verb: str, status: int, output: bytes, steps: Steps) -> None:
        """Count a request that was just replied to."""
        seconds = (time.monotonic_ns() - steps.begin) / 1e9
        verb = verb if verb in VERBS else "other"
        self._seconds.observe(seconds, verb)
        for name, _, start, end in steps.spans:
            self._steps.observe((end - start) / 1e9, name, verb)
        # last: a scrape writes this number first, so that a request which it counts has its times there, too
        self._requests.labels(verb, str(_code(output) if status else 0)).inc()

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry) + f"{self._seconds.text()}{self._steps.text()}".encode()


def _code(output: bytes) -> int:
    """Return the code of a CNI error."""
    try:
        return int(json.loads(output)["code"])
    except (SriovError, TypeError, KeyError, ValueError):
        return _NO_CODE


class _Process(Collector):
    """Requests at work and before it, waits for locks, and repeated requests to the address service."""

    def __init__(self, running: Callable[[], int], listeners: Sequence[socket.socket]) -> None:
        self._running = running
        self._listeners = listeners

    def collect(self) -> Iterator[Metric]:
        """Return the counts as they are now."""
        yield GaugeMetricFamily(
            "sriov_fast_requests_running", "Requests being carried out", value=self._running()
        )
        with suppress(OSError):  # a kernel that cannot tell
            yield GaugeMetricFamily(
                "sriov_fast_requests_queued",
                "Connections that no thread has accepted",
                value=sum(map(sockets.queued, self._listeners)),
            )
        waits = locks.waits
        yield CounterMetricFamily(
            "sriov_fast_lock_waits", "Locks that were not free at once", value=waits.number
        )
        yield CounterMetricFamily(
            "sriov_fast_lock_wait_seconds", "Time spent waiting for locks", value=waits.seconds
        )
        yield CounterMetricFamily(
            "sriov_fast_lock_timeouts", "Locks that were not free in time", value=waits.timeouts
        )
        yield CounterMetricFamily(
            "sriov_fast_ipam_retries",
            "Requests to the address service sent again",
            value=_retries(),
        )


def _retries() -> int:
    """Return how often txipam asked again; a node that has not used it does not load it."""
    import sys

    retry = sys.modules.get("sriov_fast.ipam.txipam.retry")
    return retry.repeated.number if retry else 0


class _Counters(Collector):
    """Packets, bytes and drops of each VF; one request for each PF, which may take the driver long."""

    def __init__(self, roots: Roots, errors: Tally[str]) -> None:
        self._roots = roots
        self._errors = errors

    def collect(self) -> Iterator[Metric]:
        """Return the counters of all VFs. A PF that cannot be read has no sample and counts as an error."""
        families = {
            kind: CounterMetricFamily(
                f"sriov_fast_vf_{kind}", f"{text}, as the PF counts them", labels=_LABELS
            )
            for kind, text in _COUNTED.items()
        }
        try:
            pfs = list(_pfs(self._roots))
        except OSError:
            pfs = []  # counted by _Node
        for pf, _ in pfs:
            try:
                counters = counters_of_vfs.read(pf)
            except (OSError, SriovError):
                self._errors["vf_counters"] += 1
                continue
            for number, values in counters.items():
                for name, value in values._asdict().items():
                    direction, _, kind = name.partition("_")
                    families[kind].add_metric((pf, str(number), direction), value)
        yield from families.values()


class _Known(NamedTuple):
    """The state of a record, as it was read when its file was last changed."""

    changed: int
    state: str


class _Node(Collector):
    """VFs by PF and state, and the journal. An unreadable value has no sample and counts as an error."""

    def __init__(self, roots: Roots, errors: Tally[str]) -> None:
        self._roots = roots
        self._known: dict[str, _Known] = {}
        self._errors = errors

    def collect(self) -> Iterator[Metric]:
        """Read the journal, sysfs and the host's addresses once each, and never the VF list of a PF."""
        records: dict[str, _Known] | None = None
        try:
            records = self._records()
        except (OSError, SriovError):
            self._errors["journal"] += 1
        if records is not None:
            yield from _journal(records)
            yield self._vfs({pci: known.state for pci, known in records.items()})
        failed = CounterMetricFamily(
            "sriov_fast_scrape_errors", "What a scrape could not read", labels=("what",)
        )
        for what, number in self._errors.items():
            failed.add_metric((what,), number)
        yield failed

    def _records(self) -> dict[str, _Known]:
        """Return the records by PCI address; only those that have changed are read again."""
        journal = Journal(self._roots.run, self._roots.proc)
        found: dict[str, _Known] = {}
        for pci, entry in journal.entries().items():
            try:
                changed = os.stat(journal.path_of(pci, entry)).st_mtime_ns
            except FileNotFoundError:
                continue  # released since
            recorded = RETURNING if entry.returning else BROKEN if entry.aside else ""
            known = self._known.get(pci)
            if not recorded and known and known.changed == changed:
                recorded = known.state
            elif not recorded:
                record = journal.read(pci, entry)
                if record is None:
                    continue
                recorded = record.state
            found[pci] = _Known(changed, recorded)
        self._known = found
        return found

    def _vfs(self, taken: dict[str, str]) -> Metric:
        """Return the number of VFs by PF and state."""
        family = GaugeMetricFamily("sriov_fast_vfs", "VFs by PF and state", labels=("pf", "state"))
        try:
            addressed = state.addressed()
            for pf, vfs in _pfs(self._roots):
                self._count(family, pf, vfs, taken, addressed)
        except (OSError, SriovError):
            self._errors["pf"] += 1
        return family

    def _count(
        self,
        family: GaugeMetricFamily,
        pf: str,
        vfs: list[Vf] | None,
        taken: dict[str, str],
        addressed: set[str],
    ) -> None:
        if vfs is None:
            self._errors["pf"] += 1
            return
        try:
            states = Tally(state.of(vf, taken, addressed, self._roots) for vf in vfs)
        except (OSError, SriovError):
            self._errors["pf"] += 1
            return
        for name in VF_STATES:
            family.add_metric((pf, name), states[name])


def _pfs(roots: Roots) -> Iterator[tuple[str, list[Vf] | None]]:
    """Yield the PFs here that have VFs, each with its VFs, None if they cannot be read.

    The device of a VF is no PF. Its name mostly follows that of its PF, and so it is not looked at.
    """
    here = f"{roots.sys}/class/net"
    of_vfs: set[str] = set()
    for name in sorted(os.listdir(here)):
        if name in of_vfs or not is_there(f"{here}/{name}/device/virtfn0"):
            continue
        if uplink.is_representor(f"{here}/{name}"):
            continue
        try:
            vfs = sysfs.scan(name, roots.sys)
        except (OSError, SriovError):
            yield name, None
            continue
        of_vfs.update(vf.netdev for vf in vfs)
        yield name, vfs


def _journal(records: dict[str, _Known]) -> Iterator[Metric]:
    """Return the number of records by state, and the age of the oldest."""
    number = GaugeMetricFamily(
        "sriov_fast_journal_records", "Records of the journal by state", labels=("state",)
    )
    oldest = GaugeMetricFamily(
        "sriov_fast_journal_oldest_seconds",
        "Time since the oldest record of a state was written",
        labels=("state",),
    )
    now = time.time()
    for name in RECORD_STATES:
        times = [known.changed / 1e9 for known in records.values() if known.state == name]
        number.add_metric((name,), len(times))
        oldest.add_metric((name,), max(0.0, now - min(times)) if times else 0.0)
    yield number
    yield oldest
