"""Metrics with a bounded number of series, for any number of models, tasks, tenants and workers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, TypeVar

from prometheus_client.metrics import MetricWrapperBase

M = TypeVar("M", bound=MetricWrapperBase)

#: The most series of a metric, of a histogram its combinations of labels. Later ones share the series `OTHER`.
MOST = 500
OTHER = "(other)"

#: A series that nothing was added to for so long makes room for a new one. A counter that comes back starts at 0.
IDLE_S = 3600.0


class BoundedLabels(Generic[M]):
    """A metric of the library with labels, by whose values `at` returns a child."""

    def __init__(self, metric: M, most: int = MOST, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._metric = metric
        self._most = most
        self._clock = clock
        self._used_at: dict[tuple[str, ...], float] = {}

    def at(self, *values: str) -> M:
        """Return the child with these values of the labels."""
        now = self._clock()
        if values not in self._used_at and len(self._used_at) >= self._most:
            self._drop_idle(now)
            if len(self._used_at) >= self._most:
                values = (OTHER,) * len(values)
        self._used_at[values] = now
        return self._metric.labels(*values)

    def _drop_idle(self, now: float) -> None:
        for values in [values for values, used_at in self._used_at.items() if now - used_at > IDLE_S]:
            del self._used_at[values]
            self._metric.remove(*values)
