"""A way to serve a model, with its measured figures, and the front of those that no other one beats."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

import msgspec

from producers.wire.errors import ConfigurationError
from workers.batching.serving.tuned_backend import MeasuredBackend, best_of
from workers.device.device_process import ModelToLoad

#: The figures by which one of the points is chosen.
Preference: TypeAlias = Literal["items", "latency", "memory"]

#: The smallest batch this near to the best rate is chosen.
GOOD_ENOUGH = 0.97

#: The name of the variant that all others are compared with.
ORIGINAL = "original"


class PointsRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A measurement of one variant with a number of threads (`workers.training.pareto.measured_points`).

    `original` is the model whose answers judge, `cores` the number of threads (0: all cores), `rows` the file of
    labelled rows, or "". `deadly` are backends that killed the process before, with the reason.
    """

    model: ModelToLoad
    original: ModelToLoad
    variant: str
    cores: int
    rows: str = ""
    deadly: dict[str, str] = {}


class TunedPoint(MeasuredBackend, frozen=True, kw_only=True):
    """A variant on a backend, with a number of threads and a batch cost.

    `accuracy` is by task, 0 to 1: the score on labelled rows, or the share of answers that equal those of the original
    in fp32. `accuracy_before` is that of the original. `latency_ms` is the mean time of a pass, `memory_mb`
    (10^6 bytes) the growth of the process by the model and a first batch. A point that does not run here has a reason
    in `refused`, and no figures. `others` is the share of the processors' time that other programs took meanwhile.
    """

    variant: str
    threads: int
    accuracy_before: dict[str, float] = msgspec.field(default_factory=dict)
    batch_cost: int = 0
    latency_ms: float = 0.0
    memory_mb: float = 0.0
    others: float = 0.0

    @property
    def mean_accuracy(self) -> float:
        return round(statistics.fmean(self.accuracy.values()), 4) if self.accuracy else 0.0

    @property
    def costs(self) -> tuple[float, ...]:
        """The figures in which less is better."""
        return (-self.mean_accuracy, self.latency_ms, self.memory_mb, -self.items_per_s)

    def beats(self, other: TunedPoint) -> bool:
        """Whether this point is as good in every figure, and better in one."""
        pairs = [*zip(self.costs, other.costs, strict=True)]
        return self.costs != other.costs and all(own <= theirs for own, theirs in pairs)


def front(points: Sequence[TunedPoint]) -> list[TunedPoint]:
    """Return the points that none beats, the most accurate first, of those the fastest (Pareto)."""
    running = [point for point in points if not point.refused]
    kept = [point for point in running if not any(other.beats(point) for other in running)]
    return sorted(kept, key=lambda point: (-point.mean_accuracy, -point.items_per_s))


_BY: Mapping[str, Callable[[TunedPoint], float]] = {
    "latency": lambda point: point.latency_ms,
    "memory": lambda point: point.memory_mb,
}


def chosen(points: Sequence[TunedPoint], most_lost: float, prefer: Preference) -> TunedPoint:
    """Return the point to serve: the best one by the preference, of those that lose at most `most_lost` (a share) of
    any task's accuracy to the original in fp32.

    For items/s, less precision must win beyond the noise (`best_of`). Raises ConfigurationError if nothing runs.
    """
    running = [point for point in points if not point.refused]
    admitted = [point for point in running if _lost(point) <= most_lost]
    if not admitted:
        reasons = "; ".join(dict.fromkeys(f"{point.variant} {point.backend}: {point.refused}" for point in points))
        raise ConfigurationError(f"no variant keeps the accuracy on this device ({reasons}); allow more by --most-lost")
    if prefer == "items":
        return _least_batch(best_of(admitted), admitted)
    return min(admitted, key=lambda point: (_BY[prefer](point), -point.items_per_s))


def _least_batch(best: TunedPoint, points: Sequence[TunedPoint]) -> TunedPoint:
    """Return the point with the smallest batches that is nearly as fast: shorter batches wait less."""
    alike = [
        point
        for point in points
        if (point.variant, point.backend, point.threads) == (best.variant, best.backend, best.threads)
        and point.items_per_s >= GOOD_ENOUGH * best.items_per_s
    ]
    return min(alike, key=lambda point: point.batch_cost)


def _lost(point: TunedPoint) -> float:
    """Return the accuracy that a point loses in its worst task."""
    return max((own - point.accuracy.get(task, 0.0) for task, own in point.accuracy_before.items()), default=0.0)
