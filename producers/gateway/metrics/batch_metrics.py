"""Counters and histograms of the micro-batches that ran, from the flight recorder's rows.

They count from the first look of this process on. A sample of the newest batches has the times of items, and the
tenants to which the device's time is counted: the shares are those of the sample, the sum is that of all batches.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram

from producers.gateway.metrics.bounded_labels import BoundedLabels
from producers.gateway.metrics.store_look import LastLook, StoreLook
from producers.gateway.views import priority_name
from results_store.records import Batch
from results_store.sql.monitoring.fleet_figures import FailureTally, ItemTimes

#: The upper ends of the buckets: of a forward pass, of an item's way and its waits (seconds), and of rows.
FORWARD_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
ITEM_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

#: The newest batches of a model that its cost is the mean of, and the most models whose cost is known.
COST_BATCHES, COST_MODELS = 500, 1000

#: A batch is stored after its end: looks overlap by twice the longest recent batch, and by these seconds.
LEAST_OVERLAP_S, MOST_OVERLAP_S = 10.0, 300.0

_BY_MODEL: dict[str, tuple[str, Callable[[Batch], float]]] = {
    "argosy_batches": ("Micro-batches that ran.", lambda batch: 1),
    "argosy_batch_items": ("Items in micro-batches.", lambda batch: batch.items),
    "argosy_batch_rows": ("Rows of micro-batches; equal contents share a row.", lambda batch: batch.rows),
    "argosy_batch_cached_rows": ("Rows whose features came from the feature cache.", lambda batch: batch.cached_rows),
    "argosy_batch_tokens": ("Tokens of the rows, without padding.", lambda batch: batch.tokens),
    "argosy_batch_padded_tokens": ("Tokens that were computed, with padding.", lambda batch: batch.padded_tokens),
    "argosy_model_loads": ("Models that were loaded on a device within a memory budget.", lambda batch: batch.loads),
}


class BatchMetrics:
    """The metrics of the batches in looks at the store, and the costs that follow from them. For a single thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, about: str, *labels: str) -> BoundedLabels[Counter]:
            return BoundedLabels(Counter(name, about, labels, registry=registry))

        def histogram(name: str, about: str, buckets: Sequence[float], *labels: str) -> BoundedLabels[Histogram]:
            return BoundedLabels(Histogram(name, about, labels, registry=registry, buckets=buckets))

        self._by_model = [(counter(name, about, "model"), value) for name, (about, value) in _BY_MODEL.items()]
        self._busy = counter("argosy_device_busy_seconds", "Seconds of forward passes.", "worker", "device")
        self._of_priority = counter("argosy_priority_device_seconds", "Device time, shared by items.", "priority")
        self._of_tenant = counter(
            "argosy_tenant_device_seconds", "Device time of a tenant, by a sample of batches.", "tenant"
        )
        self._failed = counter("argosy_failed_results", "Results that failed.", "task", "kind")
        self._rows = histogram("argosy_batch_size_rows", "Rows of a micro-batch.", ROWS, "model")
        self._forward = histogram(
            "argosy_forward_seconds",
            "Forward pass of a batch, observed for each task and priority in it.",
            FORWARD_S,
            *("model", "task", "priority"),
        )
        self._waits = histogram(
            "argosy_item_wait_seconds",
            "Wait of an item in its worker for a batch, by a sample.",
            ITEM_S,
            *("model", "priority"),
        )
        self._ends = histogram(
            "argosy_item_seconds",
            "From submission to the stored result, by a sample of succeeded results.",
            ITEM_S,
            *("task", "priority"),
        )
        self._commits = Histogram(
            "argosy_commit_seconds",
            "From the end of the computation to the stored result, by a sample.",
            registry=registry,
            buckets=ITEM_S,
        )
        self._cut_off = Counter(
            "argosy_metrics_cut_off_looks",
            "Looks that found more batches than they take: counters miss some.",
            registry=registry,
        )
        self._recent: defaultdict[str, deque[tuple[float, int]]] = defaultdict(lambda: deque(maxlen=COST_BATCHES))
        self._known: dict[str, float] = {}  # the ids of counted batches that the next look may see again
        self._last: LastLook | None = None

    @property
    def last(self) -> LastLook | None:
        """The look before; None before the first."""
        return self._last

    @property
    def costs(self) -> dict[str, float]:
        """The seconds of a device for an item, by model."""
        sums = {model: (sum(s for s, _ in ran), sum(n for _, n in ran)) for model, ran in self._recent.items()}
        return {model: seconds / items for model, (seconds, items) in sums.items() if items}

    def add(self, look: StoreLook) -> None:
        """Count a look's batches and failures. The batches of the first look ran before: they only tell the costs."""
        new = [batch for batch in look.batches if batch.id not in self._known]  # two looks may have overlapped
        for batch in reversed(new):
            if batch.model in self._recent or len(self._recent) < COST_MODELS:
                self._recent[batch.model].append((batch.forward_s, batch.items))
        if self._last is not None:
            self._count(new)
            self._share_among_tenants(look.traced, look.tenants, sum(batch.forward_s for batch in new))
            self._time(look.traced, look.times)
            self._fail(look.failures)
            self._cut_off.inc(look.cut_off)
        self._remember(look, new)

    def _remember(self, look: StoreLook, new: Sequence[Batch]) -> None:
        self._known |= {batch.id: batch.started_at for batch in new}
        longest_s = max((batch.forward_s for batch in look.batches), default=0.0)
        since = look.at - min(MOST_OVERLAP_S, LEAST_OVERLAP_S + 2 * longest_s)
        if self._last is None:
            since = look.at - MOST_OVERLAP_S
        self._known = {id_: at for id_, at in self._known.items() if at >= look.at - MOST_OVERLAP_S - LEAST_OVERLAP_S}
        self._last = LastLook(since, look.at, frozenset(self._known))

    def _count(self, new: Iterable[Batch]) -> None:
        for batch in new:
            for metric, value in self._by_model:
                metric.at(batch.model).inc(value(batch))
            self._busy.at(batch.worker, batch.device).inc(batch.forward_s)
            self._rows.at(batch.model).observe(batch.rows)
            for priority, items in batch.priorities.items():
                name = _priority(priority)
                self._of_priority.at(name).inc(batch.forward_s * items / max(1, batch.items))
                for task in batch.heads:
                    self._forward.at(batch.model, task, name).observe(batch.forward_s)

    def _share_among_tenants(self, traced: Sequence[Batch], tenants: Mapping[str, str], seconds: float) -> None:
        shares: defaultdict[str, float] = defaultdict(float)
        for batch in traced:
            trace = batch.trace or {}
            for job, *_ in trace["items"]:
                shares[tenants.get(trace["jobs"][job], "")] += batch.forward_s / len(trace["items"])
        total = sum(shares.values())
        for tenant, share in shares.items():
            self._of_tenant.at(tenant).inc(seconds * share / max(total, 1e-9))

    def _time(self, traced: Sequence[Batch], times: Iterable[ItemTimes]) -> None:
        for batch in traced:
            for _, _, _, priority, _, waited_ms in (batch.trace or {})["items"]:
                self._waits.at(batch.model, _priority(priority)).observe(max(0.0, waited_ms / 1000))
        for item in times:  # a producer's clock may be ahead of the store's
            took_s = max(0.0, item.stored_at - item.queued_at)
            self._ends.at(item.task, _priority(item.priority)).observe(took_s)
            self._commits.observe(max(0.0, item.stored_at - item.computed_at))

    def _fail(self, failures: Iterable[FailureTally]) -> None:
        for failure in failures:
            self._failed.at(failure.task, failure.kind).inc(failure.count)


def _priority(value: str | int) -> str:
    return str(priority_name(int(value)))
