"""Prometheus metrics of the resident server; imported only with ``serve --metrics``.

Each process of the server counts its requests after the reply (``counts``). Everything else is read by the
scrape itself, so the metrics cost nothing while nobody asks for them.
"""

from __future__ import annotations

import os
import platform
import socket
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Info, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from sriov_fast import __version__
from sriov_fast.common.errors import SriovError, is_there
from sriov_fast.common.paths import Roots
from sriov_fast.common.record import Vf
from sriov_fast.kernel.backend import sysfs
from sriov_fast.server import sockets
from sriov_fast.server import vf_counters as counters_of_vfs
from sriov_fast.server.counts import Counts
from sriov_fast.server.workers import Worker
from sriov_fast.vf import state, uplink
from sriov_fast.vf.journal import ATTACHED, ATTACHING, BROKEN, RETURNING, Journal
from sriov_fast.vf.state import FREE, USED

CONTENT_TYPE = CONTENT_TYPE_LATEST
VF_STATES = (FREE, ATTACHED, RETURNING, USED, BROKEN)
RECORD_STATES = (ATTACHING, ATTACHED, RETURNING, BROKEN)
_WAITS = (
    ("lock_waits", "number", "Locks that were not free at once"),
    ("lock_wait_seconds", "seconds", "Time spent waiting for locks"),
    ("lock_timeouts", "timeouts", "Locks that were not free in time"),
)
_LABELS = ("pf", "vf", "direction")
_COUNTED = {"packets": "Packets of a VF", "bytes": "Bytes of a VF", "dropped": "Dropped packets of a VF"}


class Metrics:
    """All metrics of one server, in their own registry.

    ``counts`` are those of this process. ``running`` returns the number of requests that it carries out now;
    more wait in ``listeners``.
    """

    def __init__(  # noqa: PLR0913 (the parts of a server)
        self,
        roots: Roots,
        counts: Counts,
        running: Callable[[], int],
        listeners: Sequence[socket.socket] = (),
        workers: Sequence[Worker] = (),
        *,
        vf_counters: bool = False,
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each counter
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        info = Info("sriov_fast_build", "Version of the server", registry=registry)
        info.info({"version": __version__, "python": platform.python_version()})
        self._counts = counts
        self._workers = workers
        self._requests = _Requests(running, listeners, workers)
        registry.register(self._requests)
        errors = Tally(dict.fromkeys(("journal", "pf"), 0))
        if vf_counters:
            errors["vf_counters"] = 0
            registry.register(_Counters(roots, errors))
        registry.register(_Node(roots, errors))

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format. One thread at a time may call this."""
        others = [counts for counts in (worker.counts() for worker in self._workers) if counts]
        self._requests.counts = [self._counts.plain(), *others]
        registered = generate_latest(self._registry)
        seconds = self._counts.seconds.text([counts["seconds"] for counts in others])
        steps = self._counts.steps.text([counts["steps"] for counts in others])
        return registered + f"{seconds}{steps}".encode()


class _Requests(Collector):
    """Requests at all stages, waits for locks, and repeated requests to the address service.

    ``counts`` are those of all processes (``Counts.plain``).
    """

    def __init__(
        self, running: Callable[[], int], listeners: Sequence[socket.socket], workers: Sequence[Worker]
    ) -> None:
        self.counts: list[dict[str, Any]] = []
        self._running = running
        self._listeners = listeners
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        """Return the counts as they are now."""
        yield self._answered()
        running = self._running() + sum(worker.running() for worker in self._workers)
        yield GaugeMetricFamily("sriov_fast_requests_running", "Requests being carried out", value=running)
        with suppress(OSError):  # a kernel that cannot tell
            yield GaugeMetricFamily(
                "sriov_fast_requests_queued",
                "Connections that no thread has accepted",
                value=sum(map(sockets.queued, self._listeners)),
            )
        for name, key, text in _WAITS:
            total = sum(counts["waits"][key] for counts in self.counts)
            yield CounterMetricFamily(f"sriov_fast_{name}", text, value=total)
        retries = sum(counts["retries"] for counts in self.counts)
        yield CounterMetricFamily(
            "sriov_fast_ipam_retries", "Requests to the address service sent again", value=retries
        )

    def _answered(self) -> Metric:
        """Return the number of requests by verb and code."""
        family = CounterMetricFamily(
            "sriov_fast_requests",
            "Requests answered; code is CNI's error code, 0 for success",
            labels=("verb", "code"),
        )
        numbers: Tally[tuple[str, str]] = Tally()
        for verb, code, number in (item for counts in self.counts for item in counts["requests"]):
            numbers[verb, code] += number
        for labels, number in numbers.items():
            family.add_metric(labels, number)
        return family


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
                states = self._states(vfs, taken, addressed)
                if states is None:
                    self._errors["pf"] += 1
                    continue
                for name in VF_STATES:
                    family.add_metric((pf, name), states[name])
        except (OSError, SriovError):
            self._errors["pf"] += 1
        return family

    def _states(self, vfs: list[Vf] | None, taken: dict[str, str], addressed: set[str]) -> Tally[str] | None:
        """Return the number of VFs by state, None if they cannot be read."""
        try:
            return None if vfs is None else Tally(state.of(vf, taken, addressed, self._roots) for vf in vfs)
        except (OSError, SriovError):
            return None


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
