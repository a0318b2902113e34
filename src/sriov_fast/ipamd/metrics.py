"""Prometheus metrics: requests, allocations, use of the pools, state of the store."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from sriov_fast import __version__
from sriov_fast.ipamd.model import PoolUse

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_METHODS = frozenset(("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"))


class _Pools(Collector):
    """Gauges of the pools, refreshed by each scrape; without samples if the store does not answer."""

    def __init__(self) -> None:
        self.usage: list[PoolUse] = []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Return one sample for each pool."""
        total = GaugeMetricFamily(
            "sriov_ipam_pool_addresses", "Addresses that a pool can give", labels=("network", "pool")
        )
        used = GaugeMetricFamily(
            "sriov_ipam_pool_addresses_used", "Addresses in use", labels=("network", "pool")
        )
        for pool in self.usage:
            total.add_metric((pool.network, pool.name), pool.total)
            used.add_metric((pool.network, pool.name), pool.used)
        yield total
        yield used


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
        self._pools = _Pools()
        registry.register(self._pools)

    def request(self, method: str, route: str, status: int, begin: float) -> None:
        """Count a request that began at ``begin`` (perf_counter)."""
        method = method if method in _METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(time.perf_counter() - begin)

    def render(self, usage: list[PoolUse] | None) -> bytes:
        """Return the metrics in text format; ``usage`` is None if the store does not answer."""
        self._up.set(usage is not None)
        self._pools.usage = usage or []
        return generate_latest(self._registry)
