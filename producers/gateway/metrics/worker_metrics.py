"""The figures of the workers' own memory, from their announcements in Redis. Unknown names are a newer worker's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from producers.gateway.metrics.bounded_labels import MOST
from producers.gateway.metrics.broker_look import NodeFigures

#: The figure of each gauge, with its meaning.
GAUGES = {
    "argosy_worker_start_time_seconds": ("started_at", "Start of the worker's process, in Unix time."),
    "argosy_worker_slots": ("slots", "The most envelopes that a worker holds."),
    "argosy_worker_held_envelopes": ("held_envelopes", "Envelopes that a worker holds."),
    "argosy_worker_waiting_items": ("waiting_items", "Items that wait for a batch in a worker."),
    "argosy_worker_writer_requests": ("writer_requests", "Requests that wait for a transaction in a worker."),
    "argosy_worker_store_away": ("store_away", "1 if the store does not answer a worker."),
    "argosy_worker_thread_lag_seconds": ("thread_lag_s", "Longest time without a turn of a worker's thread."),
    "argosy_worker_scheduling_lag_seconds": ("scheduling_lag_s", "Delay of the watchdog's last look."),
    "argosy_worker_resident_bytes": ("resident_bytes", "Memory of the worker's process, without its device process."),
}

#: The figure of each counter, with its meaning.
COUNTERS = {
    "argosy_worker_postponed_results": ("postponed_results", "Results that a worker left for later."),
    "argosy_worker_cached_results": ("cached_results", "Results that a worker took from earlier jobs."),
    "argosy_worker_transactions": ("transactions", "Transactions of a worker."),
    "argosy_worker_transaction_seconds": ("transaction_s", "Time of these transactions."),
    "argosy_worker_cpu_seconds": ("cpu_s", "Processor time of the worker's process, without its device process."),
}

#: The ends of envelopes at a worker. A skipped envelope is held or done elsewhere, or waits.
OUTCOMES = ("done", "skipped", "interrupted", "failed")


def worker_metrics(nodes: Sequence[NodeFigures]) -> Iterator[Metric]:
    """Yield the metrics of the workers that tell them."""
    told = [node for node in nodes if node.figures][:MOST]
    for name, (figure, about) in GAUGES.items():
        gauge = GaugeMetricFamily(name, about, labels=("worker",))
        for node in told:
            if figure in node.figures:
                gauge.add_metric((node.name,), node.figures[figure])
        yield gauge
    for name, (figure, about) in COUNTERS.items():
        counter = CounterMetricFamily(name, about, labels=("worker",))
        for node in told:
            counter.add_metric((node.name,), node.figures.get(figure, 0.0))
        yield counter
    ends = CounterMetricFamily("argosy_worker_envelopes", "Envelopes by their ends.", labels=("worker", "outcome"))
    for node in told:
        for outcome in OUTCOMES:
            ends.add_metric((node.name, outcome), node.figures.get(f"envelopes_{outcome}", 0.0))
    yield ends
