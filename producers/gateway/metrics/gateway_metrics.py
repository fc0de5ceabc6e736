"""The metrics of a gateway: of the fleet, of its requests, and of its process."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Iterator

import prometheus_client
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from producers.client.async_client import AsyncClient
from producers.gateway.metrics.fleet_monitor import FleetMonitor
from producers.gateway.metrics.http_metrics import HttpMetrics
from producers.gateway.rates import HeldBytes


class GatewayMetrics(Collector):
    """The metrics of a gateway's event loop. `serving` counts its requests by key, `bodies` the bytes in memory."""

    def __init__(self, client: AsyncClient, serving: Counter[str], bodies: HeldBytes) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the series
        self._serving = serving
        self._bodies = bodies
        self._loop_lag_s = 0.0
        self._registry = CollectorRegistry()
        self.http = HttpMetrics(self._registry)
        self.fleet = FleetMonitor(client, self._registry)
        self._registry.register(self)
        for process in (ProcessCollector, PlatformCollector, GCCollector):
            process(registry=self._registry)

    async def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        await self.fleet.look()
        began = time.monotonic()
        await asyncio.sleep(0)
        self._loop_lag_s = time.monotonic() - began
        return await asyncio.to_thread(generate_latest, self._registry)

    def describe(self) -> Iterable[Metric]:
        """Name no metrics beforehand: those of this registry have different names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield the state of the process."""
        about = "Requests that are being served."
        yield GaugeMetricFamily("argosy_gateway_requests", about, self._serving.total())
        yield GaugeMetricFamily("argosy_gateway_body_bytes", "Bodies in memory.", self._bodies.held)
        about = "Wait for a turn of the event loop at this scrape."
        yield GaugeMetricFamily("argosy_gateway_loop_lag_seconds", about, self._loop_lag_s)
