"""The input of a decision: the settings of the policy, and the moment at which it decides. See `decision`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from workers.batching.planning.cost_model import CostModel
from workers.batching.planning.tenant_turns import Turns
from workers.batching.planning.waiting_pool import Pool

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Budget:
    """The limits of a model's micro-batch: padded cost, and rows."""

    cost: int
    rows: int

    def halved(self, cost: int, rows: int) -> Budget:
        """Return half of this budget, or half of the given batch if that was smaller."""
        return Budget(max(1, min(self.cost, cost) // 2), max(1, min(self.rows, rows) // 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The settings of batching. Times are seconds; shares are of device time, and their sum, with ageing, is under 1.

    `promised_wait_s` is, by priority, the longest wait of an item behind less urgent batches, of which it may
    meet `stages`.
    """

    budgets: Mapping[str, Budget]
    guaranteed_shares: Mapping[int, float] = field(default_factory=dict)
    promised_wait_s: Mapping[int, float] = field(default_factory=dict)
    stages: int = 2
    window: int = 4096
    least_real_share: float = 0.8
    aged_after_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment(Generic[T]):
    """The state of the queue at a decision. `starts_at` is the start of the batch on the device. `seen_at` is, by
    priority, the arrival of its last item. `absent` has the models that are not loaded, with the seconds until each can
    be.
    """

    pool: Pool[T]
    policy: Policy
    costs: CostModel
    turns: Turns
    now: float
    starts_at: float
    seen_at: Mapping[int, float] = field(default_factory=dict)
    absent: Mapping[str, float] = field(default_factory=dict)

    def begins_at(self, model: str) -> float:
        """The earliest start of a batch of a model."""
        return max(self.starts_at, self.now + self.absent.get(model, 0.0))
