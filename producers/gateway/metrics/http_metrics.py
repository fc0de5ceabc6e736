"""The requests of a gateway, by route. The guard notes the begin of each answer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Histogram

from producers.gateway.metrics.bounded_labels import BoundedLabels

#: The upper ends of the buckets; requests that wait for results take up to two minutes.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class HttpMetrics:
    """Counts the answers of an event loop."""

    def __init__(self, registry: CollectorRegistry) -> None:
        about = "From the end of the headers to the begin of the answer."
        labels = ("route", "status")
        self._took = BoundedLabels(
            Histogram("argosy_gateway_request_seconds", about, labels, registry=registry, buckets=SECONDS)
        )

    def note(self, scope: Mapping[str, Any], status: int, began: float) -> None:
        """Note an answer to a request that `began` then (monotonic). Refusals before a route have the route "-"."""
        route = getattr(scope.get("route"), "path", "-")
        self._took.at(route, str(status)).observe(time.monotonic() - began)
