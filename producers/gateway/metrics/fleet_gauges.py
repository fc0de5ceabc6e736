"""The state of the fleet at the last look, as gauges. A state that is not known has no series, never an old one."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from producers.gateway.metrics.bounded_labels import MOST, OTHER
from producers.gateway.metrics.broker_look import BrokerLook
from producers.gateway.metrics.store_look import StoreLook
from producers.gateway.metrics.wanted_workers import Wanted
from producers.gateway.metrics.worker_metrics import worker_metrics
from producers.gateway.views import priority_name
from producers.wire.edge.told_sites import ToldSite
from producers.wire.messages import Priority
from results_store.sql.monitoring.fleet_figures import Demand

Line = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetLook:
    """A look at store and broker, None if it did not answer. `costs` are seconds of a device per item, by model."""

    store: StoreLook | None
    broker: BrokerLook | None
    costs: Mapping[str, float]
    wanted: Wanted | None
    took_s: float


class FleetGauges(Collector):
    """The gauges of the look that `latest` returns."""

    def __init__(self, latest: Callable[[], FleetLook]) -> None:
        self._latest = latest

    def describe(self) -> Iterable[Metric]:
        """Name no metrics beforehand: those of this registry have different names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges."""
        look = self._latest()
        yield _plain("argosy_store_up", "1 if the store answered.", look.store is not None)
        yield _plain("argosy_broker_up", "1 if Redis answered.", look.broker is not None)
        yield _plain("argosy_metrics_look_seconds", "Time of the last look at store and Redis.", look.took_s)
        if look.store is not None:
            yield from _of_store(look.store, look.broker, look.costs)
        if look.broker is not None:
            yield from _of_broker(look.broker)
        if look.wanted is not None:
            about = "Workers that the unfinished work of all models needs, by its seconds and deadlines."
            yield _plain("argosy_wanted_workers", about, look.wanted.workers)


def _of_store(store: StoreLook, broker: BrokerLook | None, costs: Mapping[str, float]) -> Iterator[Metric]:
    by_line: defaultdict[Line, list[Demand]] = defaultdict(list)
    served = {name for node in broker.nodes for name in node.models} if broker else set()
    for line in sorted((model, priority.name.lower()) for model in served for priority in Priority):
        by_line[line] = []  # a queue without work is 0, and stays a series
    for demand in store.demand:
        by_line[demand.model, str(priority_name(demand.priority))].append(demand)
    lines = _bounded(by_line)

    def family(name: str, about: str, value: Callable[[list[Demand]], float | None]) -> Metric:
        return _labelled(name, about, ("model", "priority"), {line: value(found) for line, found in lines.items()})

    def oldest_s(found: list[Demand]) -> float:
        return max(0.0, store.at - min((one.unclaimed_since or store.at for one in found), default=store.at))

    def work_s(found: list[Demand]) -> float | None:
        known = all(one.model in costs for one in found)
        return sum((one.items - one.paused_items) * costs[one.model] for one in found) if known else None

    def due_s(found: list[Demand]) -> float | None:
        return min((one.due_at - store.at for one in found if one.due_at is not None), default=None)

    yield family("argosy_queue_items", "Unfinished items.", lambda found: sum(one.items for one in found))
    yield family("argosy_queue_envelopes", "Unfinished envelopes.", lambda found: sum(one.envelopes for one in found))
    yield family("argosy_queue_oldest_age_seconds", "Age of the oldest envelope that no worker holds.", oldest_s)
    yield family("argosy_queue_work_seconds", "Device time that the unfinished items need, if it is known.", work_s)
    yield family("argosy_queue_due_seconds", "Time to the earliest deadline; negative if it is over.", due_s)
    yield family(
        "argosy_leased_envelopes", "Envelopes that workers hold.", lambda found: sum(one.held for one in found)
    )
    about = "Unfinished envelopes that were claimed more than once."
    yield family("argosy_redelivered_envelopes", about, lambda found: sum(one.retried for one in found))
    about = "Unfinished envelopes that a reconciler published again."
    yield family("argosy_reconciled_envelopes", about, lambda found: sum(one.republished for one in found))
    about = "Deaths of workers under envelopes that are unfinished."
    yield family("argosy_envelope_worker_deaths", about, lambda found: sum(one.deaths for one in found))
    about = "Envelopes of which results are tried again later."
    yield family("argosy_postponed_envelopes", about, lambda found: sum(one.postponed for one in found))
    about = "Envelopes that wait for the end of a pause."
    yield family("argosy_paused_envelopes", about, lambda found: sum(one.paused for one in found))
    about = "A model, task or tenant that is paused."
    yield _labelled("argosy_paused", about, ("kind", "name"), {(one.kind, one.name): 1.0 for one in store.pauses})
    yield _plain("argosy_dead_letters", "Envelopes that were given up.", store.dead)
    about = "Device time of an item, in recent batches."
    yield _labelled("argosy_item_cost_seconds", about, ("model",), {(model,): cost for model, cost in costs.items()})


def _of_broker(broker: BrokerLook) -> Iterator[Metric]:
    messages = {(model, str(priority_name(priority))): count for (model, priority), count in broker.messages.items()}
    yield _labelled("argosy_broker_messages", "Messages that wait in Redis.", ("model", "priority"), messages)
    about = "Messages without a lease that workers hold, or held when they died."
    yield _plain("argosy_broker_unacknowledged_messages", about, broker.unacknowledged)
    yield _plain("argosy_broker_refused_messages", "Refused messages that Redis keeps.", broker.refused)
    if broker.refused_at is not None:
        about = "Time of the newest refused message, in Unix time."
        yield _plain("argosy_broker_last_refusal_time_seconds", about, broker.refused_at)
    if broker.memory_bytes is not None:
        yield _plain("argosy_broker_memory_bytes", "Memory of Redis.", broker.memory_bytes)
        yield _plain("argosy_broker_memory_limit_bytes", "Redis' maxmemory; 0: no limit.", broker.most_memory_bytes)
    yield _plain("argosy_workers", "Workers that are alive.", len(broker.nodes))
    up = {(node.name, node.device): 1.0 for node in broker.nodes}
    yield _labelled("argosy_worker_up", "A worker that is alive.", ("worker", "device"), up)
    measured = {(node.name,): node for node in broker.nodes if node.budget_bytes}
    resident = {line: node.resident_bytes for line, node in measured.items()}
    yield _labelled("argosy_worker_model_bytes", "Memory of the loaded models.", ("worker",), resident)
    budget = {line: node.budget_bytes for line, node in measured.items()}
    yield _labelled("argosy_worker_model_budget_bytes", "Memory budget for models.", ("worker",), budget)
    yield from worker_metrics(broker.nodes)
    served: defaultdict[tuple[str, ...], float] = defaultdict(float)
    for node in broker.nodes:
        for name, model in node.models.items():
            served[name, model.state] += 1
    yield _labelled("argosy_model_workers", "Workers that serve a model, by its state.", ("model", "state"), served)
    yield from _of_sites(broker.sites)


def _of_sites(sites: Sequence[ToldSite]) -> Iterator[Metric]:
    def family(name: str, about: str, value: Callable[[ToldSite], float | None]) -> Metric:
        return _labelled(name, about, ("tenant", "site"), {(one.tenant, one.site): value(one) for one in sites})

    now = time.time()
    yield family("argosy_site_told_age_seconds", "Time since a site of the edge told last.", lambda one: now - one.at)
    yield family("argosy_site_waiting_items", "Items that wait at a site for this fleet.", lambda one: one.waiting)
    yield family("argosy_site_sent_items", "Items that a site has sent since it was set up.", lambda one: one.sent)
    about = "Share of equal answers, of the items that site and fleet both answered."
    yield family("argosy_site_agreement_ratio", about, lambda one: one.agreement)


def _bounded(by_line: Mapping[Line, list[Demand]]) -> dict[Line, list[Demand]]:
    """Keep the lines with the most items; the others become one line."""
    ordered = sorted(by_line, key=lambda line: -sum(one.items for one in by_line[line]))
    lines = {line: by_line[line] for line in ordered[:MOST]}
    if rest := ordered[MOST:]:
        lines[OTHER, OTHER] = [demand for line in rest for demand in by_line[line]]
    return lines


def _plain(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(name, about, value=float(value))


def _labelled(name: str, about: str, labels: tuple[str, ...], values: Mapping[Any, float | None]) -> Metric:
    family = GaugeMetricFamily(name, about, labels=labels)
    known = [(line, value) for line, value in values.items() if value is not None]
    for line, value in known[: MOST + 1]:
        family.add_metric(line, float(value))
    return family
