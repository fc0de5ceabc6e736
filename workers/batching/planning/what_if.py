"""Forecasts other policy settings: recorded arrivals, replayed on a simulated device.

The simulated device's times are fitted to the recorded batches. The settings that really ran are simulated too, and the
difference to the record is the error of every other line. Arrivals are replayed at their time at the batcher; an
arrival caused by the end of other work (a worker takes a new envelope for each finished one) comes no earlier under
better settings. The rate to compare is therefore `capacity`, items per second of device time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from results_store.records import Batch
from workers.batching.planning.cost_model import BatchShape, CostModel
from workers.batching.planning.policy import Policy
from workers.batching.planning.simulation import Outcome, simulate
from workers.batching.planning.waiting_pool import Waiting

#: A shorter idle time is the gap between two batches, not a lack of work.
LONGEST_GAP_S = 0.005


@dataclass(frozen=True, slots=True)
class Forecast:
    """The result of settings on a trace, forecast or recorded. Latencies run from the batcher's door to the end of the
    batch, by priority as (median, 99th percentile).
    """

    capacity: float
    waste: float
    rows: float  # per batch
    latency_s: Mapping[int, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Recording:
    """The recorded batches of one worker, the oldest first, with their traces."""

    batches: Sequence[Batch]

    @property
    def trace(self) -> list[Waiting]:
        """The items in order of arrival. Items that shared a row had the same content."""
        items = [
            Waiting(
                batch.model,
                priority,
                cost,
                batch.trace["formed_at"] - waited_ms / 1000,
                content=f"{batch.id}/{row}".encode(),
                heads=max(1, round(sum(batch.heads.values()) / batch.items)),
            )
            for batch in self.batches
            if batch.trace
            for _, _, row, priority, cost, waited_ms in batch.trace["items"]
        ]
        return sorted(items, key=lambda waiting: waiting.arrived_at)

    @property
    def costs(self) -> CostModel:
        """The costs of batches on this device, by all of them."""
        costs = CostModel(fading=1.0)
        for batch in self.batches:
            costs.observe(batch.model, _shape(batch), batch.forward_s)
        return costs

    @property
    def gap_s(self) -> float:
        """The gap between two batches while there is work."""
        gaps = [batch.idle_s for batch in self.batches if batch.idle_s <= LONGEST_GAP_S]
        return median(gaps) if gaps else 0.0

    def recorded(self) -> Forecast:
        """Return the recorded result."""
        gap_s = self.gap_s
        busy_s = sum(batch.forward_s + min(batch.idle_s, gap_s) for batch in self.batches)
        latencies: dict[int, list[float]] = {}
        for batch in self.batches:
            ended_at = batch.started_at + batch.forward_s
            for _, _, _, priority, _, waited_ms in batch.trace["items"] if batch.trace else ():
                latencies.setdefault(priority, []).append(ended_at - batch.trace["formed_at"] + waited_ms / 1000)  # type: ignore[index]
        return Forecast(
            sum(batch.items for batch in self.batches) / busy_s,
            1 - sum(batch.tokens for batch in self.batches) / sum(batch.padded_tokens for batch in self.batches),
            sum(batch.rows for batch in self.batches) / len(self.batches),
            _percentiles(latencies),
        )

    def forecast(self, policy: Policy) -> Forecast:
        """Return the forecast for `policy`."""
        times, gap_s = self.costs, self.gap_s

        def device(model: str, shape: BatchShape) -> float:
            return (times.seconds(model, shape) or 0.0) + gap_s

        # the simulated batcher learns on its own copy: the device stays as recorded
        return _forecast(simulate(self.trace, policy, device, costs=self.costs))


def recordings(batches: Iterable[Batch]) -> list[Recording]:
    """Return the batches that can be replayed, by worker. A model needs six batches for its times."""
    by_worker: dict[str, list[Batch]] = {}
    counts: dict[tuple[str, str], int] = {}
    for batch in sorted(batches, key=lambda batch: batch.started_at):
        if batch.trace and "formed_at" in batch.trace and batch.forward_s > 0:
            by_worker.setdefault(batch.worker, []).append(batch)
            counts[batch.worker, batch.model] = counts.get((batch.worker, batch.model), 0) + 1
    enough = {key for key, count in counts.items() if count >= 6}
    found = [[batch for batch in own if (batch.worker, batch.model) in enough] for own in by_worker.values()]
    return [Recording(own) for own in found if own]


def _shape(batch: Batch) -> BatchShape:
    return BatchShape(batch.padded_tokens, batch.rows, sum(batch.heads.values()))


def _forecast(outcome: Outcome) -> Forecast:
    latencies: dict[int, list[float]] = {}
    for arrival in outcome.arrivals:
        latencies.setdefault(arrival.waiting.priority, []).append(arrival.latency_s)
    busy_s = sum(ran.seconds for ran in outcome.batches)
    rows = sum(ran.shape.rows for ran in outcome.batches) / len(outcome.batches)
    return Forecast(len(outcome.arrivals) / busy_s, outcome.waste, rows, _percentiles(latencies))


def _percentiles(latencies: Mapping[int, Sequence[float]]) -> dict[int, tuple[float, float]]:
    found = {}
    for priority, seconds in sorted(latencies.items()):
        ordered = sorted(seconds)
        found[priority] = (median(ordered), ordered[int(0.99 * (len(ordered) - 1))])
    return found
