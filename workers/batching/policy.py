"""Which waiting items form the next micro-batch: a pure function, without I/O, clock or threads.

The order of decisions:

1. Items past their deadline are set aside; they are never computed.
2. The *leader* is the item that must go now: of the most urgent priority the one that waited longest. The guaranteed
   share of a lower priority overrides this: a priority that has had less than its share of the recent
   cost leads instead. The leader fixes the batch's model, and it always runs, whatever it costs.
3. Companions of the leader's priority come from a window of the oldest such items, nearest in size to the leader, so
   that a batch is of similar lengths and little is padded, and no item is passed over for longer than a window.
4. Room left over is filled with less urgent items that are no longer than the batch already is: they widen nothing.

A batch's cost is padded: rows times the largest row. It stays within the budget unless the leader alone exceeds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Waiting:
    """What the policy knows of a waiting item. `cost` is its row's cost; times are seconds of one clock."""

    model: str
    priority: int
    cost: int
    arrived_at: float
    deadline_at: float | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that one micro-batch of a model may hold: padded cost, and rows."""

    cost: int
    rows: int


@dataclass(frozen=True, slots=True)
class Shares:
    """Guaranteed shares of the recent cost by priority, and the cost each priority recently had."""

    guaranteed: Mapping[int, float] = field(default_factory=dict)
    served: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """Indices into the waiting items: those of the next batch, and those whose deadline has passed."""

    batch: tuple[int, ...]
    expired: tuple[int, ...]


#: Companions are chosen among this many batches' worth of the oldest items of the leader's priority.
WINDOW_BATCHES = 8

#: A companion that would leave less than this share of the padded cost real waits for a batch of its own size.
LEAST_REAL_SHARE = 0.75


def next_batch(
    waiting: Sequence[Waiting],
    budget_of: Callable[[str, int], Budget],
    now: float,
    shares: Shares | None = None,
) -> Decision:
    """Return the next micro-batch out of `waiting`, which is in order of arrival. See the module for the rules.

    `budget_of` gives the budget of a batch by its model and by the priority that leads it.
    """
    expired = tuple(i for i, item in enumerate(waiting) if item.deadline_at is not None and item.deadline_at <= now)
    gone = set(expired)
    live = [i for i in range(len(waiting)) if i not in gone]
    if not live:
        return Decision((), expired)
    leader = _leader(waiting, live, shares or Shares())
    model = waiting[leader].model
    leading = waiting[leader].priority
    budget = budget_of(model, leading)
    batch = [leader]
    others = [i for i in live if i != leader and waiting[i].model == model]
    own = [i for i in others if waiting[i].priority == leading][: WINDOW_BATCHES * budget.rows]
    _gather(batch, own, waiting, budget)
    rest = [i for i in others if waiting[i].priority != leading]
    _top_up(batch, sorted(rest, key=lambda i: waiting[i].priority), waiting, budget)
    return Decision(tuple(batch), expired)


def _leader(waiting: Sequence[Waiting], live: Sequence[int], shares: Shares) -> int:
    oldest: dict[int, int] = {}
    for i in live:
        oldest.setdefault(waiting[i].priority, i)  # `live` is in order of arrival
    total = sum(shares.served.values())
    for priority in sorted(oldest, reverse=True):
        share = shares.guaranteed.get(priority, 0.0)
        if total and shares.served.get(priority, 0.0) < share * total:
            return oldest[priority]
    return oldest[min(oldest)]


def _gather(batch: list[int], candidates: Sequence[int], waiting: Sequence[Waiting], budget: Budget) -> None:
    """Add the candidates nearest in cost to the leader, as long as the batch stays in budget and mostly real."""
    leader = waiting[batch[0]].cost
    widest = real = leader
    for i in sorted(candidates, key=lambda i: abs(waiting[i].cost - leader)):
        cost = waiting[i].cost
        padded = (len(batch) + 1) * max(widest, cost)
        if padded <= budget.cost and len(batch) < budget.rows and real + cost >= LEAST_REAL_SHARE * padded:
            batch.append(i)
            widest = max(widest, cost)
            real += cost


def _top_up(batch: list[int], candidates: Sequence[int], waiting: Sequence[Waiting], budget: Budget) -> None:
    """Add the candidates that need no more padding than the batch already has, in their order."""
    widest = max(waiting[i].cost for i in batch)
    room = min(budget.rows, budget.cost // max(widest, 1)) - len(batch)
    for i in candidates:
        if room <= 0:
            return
        if waiting[i].cost <= widest:
            batch.append(i)
            room -= 1
