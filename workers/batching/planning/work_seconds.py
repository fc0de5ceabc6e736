"""The seconds that work takes a node, by the batches that ran there.

A batch's time on the device is known from the cost model. Beside it stands the host's part: the seconds for which the
device waited although the node held many envelopes, over the items of these batches. A node that is as fast as its
device has none; on a device that does nothing it is all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, NamedTuple, Self, TypeAlias

import msgspec

from workers.batching.planning.cost_model import BatchShape, CostModel
from workers.batching.planning.policy import Budget

#: The share of their weight that observations keep per batch: after 20 batches about a third is left.
FADING = 0.95


# other nodes say their rates, so they are checked when they are read
Seconds: TypeAlias = Annotated[float, msgspec.Meta(ge=0.0, le=1e9)]
AtLeastOne: TypeAlias = Annotated[float, msgspec.Meta(ge=1.0, le=1e18)]


class Amount(NamedTuple):
    """Work, by the numbers that decide its time: the sum of its rows' costs, its rows, and the rows of all heads."""

    cost: float = 0.0
    rows: float = 0.0
    heads: float = 0.0

    @classmethod
    def total(cls, amounts: Iterable[Amount]) -> Self:
        """Return the sum of amounts."""
        costs, rows, heads = 0.0, 0.0, 0.0
        for amount in amounts:
            costs, rows, heads = costs + amount.cost, rows + amount.rows, heads + amount.heads
        return cls(costs, rows, heads)

    def towards(self, other: Amount, share: float) -> Amount:
        """Return the amount that lies a share of the way to another one."""
        return Amount(*(own + share * (its - own) for own, its in zip(self, other, strict=True)))


class WorkRate(msgspec.Struct, frozen=True, kw_only=True):
    """The seconds of a model's work at a node: a batch's fixed seconds, and those of a unit of cost, a row, a head row.

    `host_s` is the host's part of a row. `batch_cost` and `batch_rows` bound a batch.
    """

    fixed_s: Seconds = 0.0
    cost_s: Seconds = 0.0
    row_s: Seconds = 0.0
    head_s: Seconds = 0.0
    host_s: Seconds = 0.0
    batch_cost: AtLeastOne = 1.0
    batch_rows: AtLeastOne = 1.0

    def seconds(self, work: Amount) -> float:
        """Predict the seconds of work, in batches that are as full as they may be."""
        batches = max(work.cost / self.batch_cost, work.rows / self.batch_rows)
        rows_s = (self.row_s + self.host_s) * work.rows
        return self.fixed_s * batches + self.cost_s * work.cost + rows_s + self.head_s * work.heads


class _Faded:
    """Faded sums of a model: real and predicted seconds; seconds and rows of all batches; the host's, and its rows."""

    __slots__ = ("host_rows", "host_s", "predicted_ran_s", "predicted_s", "ran_s", "rows")

    def __init__(self) -> None:
        self.predicted_s = self.predicted_ran_s = self.ran_s = self.rows = self.host_s = self.host_rows = 0.0


class WorkRates:
    """The rates of one device's models. `ran` is called by the batcher's thread; `now`, by any, has them by name."""

    def __init__(self, costs: CostModel) -> None:
        self._costs = costs
        self._sums: dict[str, _Faded] = {}
        self.now: Mapping[str, WorkRate] = {}

    def known_before(self, budgets: Mapping[str, Budget]) -> None:
        """Begin with the saved costs of models."""
        for model, budget in budgets.items():
            self._publish(model, budget)

    def ran(
        self,
        model: str,
        budget: Budget,
        shape: BatchShape,
        seconds: float,
        predicted_s: float | None,
        host_s: float | None,
    ) -> None:
        """Learn from a batch that ran in `seconds`. `host_s` is the host's part of it; None if that is not known."""
        sums = self._sums.setdefault(_name(model), _Faded())
        sums.ran_s = sums.ran_s * FADING + seconds
        sums.rows = sums.rows * FADING + shape.rows
        if predicted_s:
            sums.predicted_s = sums.predicted_s * FADING + predicted_s
            sums.predicted_ran_s = sums.predicted_ran_s * FADING + seconds
        if host_s is not None:
            sums.host_s = sums.host_s * FADING + host_s
            sums.host_rows = sums.host_rows * FADING + shape.rows
        self._publish(model, budget)

    def _publish(self, model: str, budget: Budget) -> None:
        sums = self._sums.get(_name(model), _NOTHING)
        parts = self._costs.parts(model)
        if parts is None and not sums.rows:
            return
        # rows that the feature cache spares make batches faster than their cost says
        pace = min(1.0, sums.predicted_ran_s / sums.predicted_s) if sums.predicted_s else 1.0
        fixed_s, cost_s, row_s, head_s = parts or (0.0, 0.0, sums.ran_s / sums.rows, 0.0)
        rate = WorkRate(
            fixed_s=pace * fixed_s,
            cost_s=pace * cost_s,
            row_s=pace * row_s,
            head_s=pace * head_s,
            host_s=sums.host_s / sums.host_rows if sums.host_rows else 0.0,
            batch_cost=budget.cost,
            batch_rows=budget.rows,
        )
        self.now = {**self.now, _name(model): rate}


_NOTHING = _Faded()


def _name(model: str) -> str:
    """Return a model's name; its versions share their rate."""
    return model.partition("#")[0]
