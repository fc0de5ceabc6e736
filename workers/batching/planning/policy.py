"""What the next micro-batch is decided on: the settings of the policy, and the moment of the decision. See `decision`."""

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
    """The most that one micro-batch of a model may hold: padded cost, and rows."""

    cost: int
    rows: int

    def halved(self, cost: int, rows: int) -> Budget:
        """Return half of this, or of what was in a batch if that was less."""
        return Budget(max(1, min(self.cost, cost) // 2), max(1, min(self.rows, rows) // 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What can be chosen about batching. Times are seconds; shares are of device time, their sum under 1 with ageing.

    `promised_wait_s` is, by priority, how long an item may have to wait behind less urgent batches, of which it can
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
    """What a decision is made on. `starts_at` is when the device will begin the batch; `seen_at`, by priority, when its last item
    came; `absent` are the models that are not loaded, with the seconds until they can be.
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
        """When a batch of a model can begin at the soonest."""
        return max(self.starts_at, self.now + self.absent.get(model, 0.0))
