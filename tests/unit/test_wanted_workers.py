"""The number of workers for unfinished work, and the bound of a metric's series: both without a server."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from producers.gateway.metrics.bounded_labels import IDLE_S, OTHER, BoundedLabels
from producers.gateway.metrics.wanted_workers import wanted_workers
from results_store.sql.monitoring.fleet_figures import Demand


def work(items: int, priority: int = 9, **changes: Any) -> Demand:
    """Work that arrived at the time 100, by default bulk without a deadline."""
    counts = dict.fromkeys(("held", "retried", "republished", "deaths"), 0)
    given = {"model": "text", "oldest_at": 100.0, "newest_at": 100.0, "due_at": None, "unclaimed_since": None}
    return Demand(**{"priority": priority, "items": items, "envelopes": 1, **given, **counts, **changes})


@pytest.mark.parametrize(
    ("demand", "messages", "expected"),
    [
        ([], 0, 0),
        ([], 3, 1),
        ([work(1)], 0, 1),
        ([work(600)], 0, 1),  # a second each, within ten minutes
        ([work(601)], 0, 2),
        ([work(10**6, model="unknown")], 0, 1),  # of unknown cost
        ([work(600), work(600, 3)], 0, 10),  # a minute for what is standard
        ([work(40, 0), work(20, 3)], 0, 4),
        ([work(25, 1)], 0, 1),  # Celery's priority 1 counts as standard
        ([work(100, due_at=150.0)], 0, 2),
        ([work(100, due_at=101.0)], 0, 10),  # no worker starts in a second
        ([work(100, due_at=99.0)], 0, 1),  # expired: it costs nothing more
        ([work(90, due_at=190.0), work(450, newest_at=200.0)], 0, 1),  # the later work comes behind
        ([work(90, due_at=190.0), work(450)], 0, 6),  # and here before it
        ([work(10, due_at=110.0), work(50, 0)], 0, 6),
        ([work(6000, paused=1, paused_items=6000)], 0, 0),  # nothing to do until somebody resumes it
        ([work(6600, envelopes=2, paused=1, paused_items=6000)], 0, 1),
    ],
)
def test_the_work_is_done_in_time(demand: list[Demand], messages: int, expected: int) -> None:
    """More urgent work goes first, and an item waits for what came before it."""
    assert wanted_workers(demand, {"text": 1.0}, at=100.0, messages=messages).workers == expected


def test_the_series_of_a_metric_are_bounded() -> None:
    """However many names there are; a series that is no longer used makes room."""
    now = [0.0]
    registry = CollectorRegistry()
    metric = Counter("names", "Names.", ["name"], registry=registry)
    bounded = BoundedLabels(metric, 2, clock=lambda: now[0])
    for name in ("a", "b", "c", "d"):
        bounded.at(name).inc()
    assert registry.get_sample_value("names_total", {"name": OTHER}) == 2
    now[0] = IDLE_S + 1
    bounded.at("a").inc()
    bounded.at("c").inc()
    assert registry.get_sample_value("names_total", {"name": "b"}) is None
    assert registry.get_sample_value("names_total", {"name": "c"}) == 1
    assert registry.get_sample_value("names_total", {"name": "a"}) == 2
