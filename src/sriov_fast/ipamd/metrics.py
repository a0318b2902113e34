"""Prometheus metrics: requests, allocations, use of the pools, state of the store."""

from __future__ import annotations

import platform
import time

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import generate_latest

from sriov_fast import __version__
from sriov_fast.ipamd.model import PoolUse

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_METHODS = frozenset(("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"))


class Metrics:
    """All metrics of one service, in their own registry."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each counter
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        info = Info("sriov_ipam_build", "Version of the service", registry=registry)
        info.info({"version": __version__, "python": platform.python_version()})
        self._requests = Counter(
            "sriov_ipam_requests", "Requests answered", ("method", "route", "status"), registry=registry
        )
        self._seconds = Histogram(
            "sriov_ipam_request_seconds",
            "Time from a request's head to the end of its answer",
            ("method", "route"),
            buckets=_SECONDS,
            registry=registry,
        )
        self.running = Gauge("sriov_ipam_requests_running", "Requests being served", registry=registry)
        self.errors = Counter("sriov_ipam_errors", "Errors answered", ("kind",), registry=registry)
        self.allocations = Counter(
            "sriov_ipam_allocations", "Allocations", ("network", "result"), registry=registry
        )
        self.releases = Counter(
            "sriov_ipam_releases", "Allocations released", ("network",), registry=registry
        )
        self._up = Gauge(
            "sriov_ipam_store_up", "Whether the store can write (1) or not (0)", registry=registry
        )
        self.expiry = Gauge(
            "sriov_ipam_certificate_expiry_timestamp_seconds",
            "When the server's certificate ends, seconds since 1970; 0 without TLS",
            registry=registry,
        )
        self.reloads = Counter(
            "sriov_ipam_reloads", "Reloads of certificate and file (SIGHUP)", ("result",), registry=registry
        )
        pool = ("network", "pool")
        self._total = Gauge(
            "sriov_ipam_pool_addresses", "Addresses that a pool can give", pool, registry=registry
        )
        self._used = Gauge("sriov_ipam_pool_addresses_used", "Addresses in use", pool, registry=registry)

    def request(self, method: str, route: str, status: int, begin: float) -> None:
        """Count a request that began at ``begin`` (perf_counter)."""
        method = method if method in _METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(time.perf_counter() - begin)

    def render(self, usage: list[PoolUse] | None) -> bytes:
        """Return the metrics in text format; ``usage`` is None if the store does not answer."""
        self._up.set(usage is not None)
        for gauge in (self._total, self._used):
            gauge.clear()
        for pool in usage or ():
            self._total.labels(pool.network, pool.name).set(pool.total)
            self._used.labels(pool.network, pool.name).set(pool.used)
        return generate_latest(self._registry)
