"""The waiting items of one device, and the policy's memory between two decisions, without threads or clock.

The batcher drives it with a real device, the simulation with a virtual one: tests of the simulation test the code of
the batcher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

from workers.batching.planning.cost_model import BatchShape, CostModel
from workers.batching.planning.decision import next_batch
from workers.batching.planning.policy import Budget, Moment, Policy
from workers.batching.planning.residence import Need
from workers.batching.planning.tenant_turns import Charge, Turns
from workers.batching.planning.waiting_pool import Pool, Ticket, Waiting
from workers.batching.planning.work_seconds import Amount


class Waits(Protocol):
    """Anything that can wait in the queue."""

    @property
    def waiting(self) -> Waiting: ...


T = TypeVar("T", bound=Waits)


@dataclass(frozen=True, slots=True)
class Chosen(Generic[T]):
    """A batch that was decided on: its items, leader first, and its predicted seconds.

    `shape` and `real`, the cost of the rows without padding, are the policy's.
    """

    items: list[T]
    shape: BatchShape
    real: int
    predicted_s: float | None
    charge: Charge


@dataclass(frozen=True, slots=True)
class Next(Generic[T]):
    """A decision: the batch, if anything waits, and the items that are too late."""

    batch: Chosen[T] | None
    expired: list[T] = field(default_factory=list)


class Scheduler(Generic[T]):
    """Not thread-safe. Times are seconds of the caller's clock. `absent` has the models that are not loaded, with the
    seconds until each can be; their items are not chosen.
    """

    def __init__(self, policy: Policy, costs: CostModel, weights: Mapping[str, float] | None = None) -> None:
        self.costs = costs
        self.turns = Turns(weights)
        self.absent: Mapping[str, float] = {}
        self._policy = policy
        self._pool: Pool[T] = Pool(policy.window)
        self._seen_at: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._pool)

    def add(self, items: Iterable[T]) -> None:
        """Add items, in order of arrival."""
        for item in items:
            waiting = item.waiting
            self._pool.add(waiting, item)
            self._seen_at[waiting.priority] = max(waiting.arrived_at, self._seen_at.get(waiting.priority, 0.0))

    def put_back(self, items: Iterable[T]) -> None:
        """Put items of a withdrawn batch back, before all others."""
        self._pool.put_back((item.waiting, item) for item in items)

    def amounts(self) -> list[tuple[str, int, Amount]]:
        """Return the waiting work by model and priority, each several times for several tenants. For any thread."""
        lanes = list(self._pool.lanes.items())
        return [(key[0], key[1], Amount(lane.cost, lane.rows, lane.heads)) for key, lane in lanes]

    @property
    def most_urgent(self) -> int | None:
        """The most urgent priority with an item that can run."""
        return min((priority for model, priority, _ in self._pool.lanes if model not in self.absent), default=None)

    def needs(self) -> dict[str, Need]:
        """The need of each model with waiting items."""
        found: dict[str, Need] = {}
        for (model, priority, _), lane in self._pool.lanes.items():
            need = Need(priority, lane.oldest.waiting.arrived_at)
            found[model] = need.merged(found[model]) if model in found else need
        for model in self.absent.keys() & found.keys():
            found[model] = replace(found[model], deadline_at=self._pool.first_deadline_at(model))
        return found

    def next(self, now: float, starts_at: float | None = None, *, overtaking: int | None = None) -> Next[T]:
        """Decide on the next batch, and remove it and the expired items from the queue.

        `starts_at` is the start of the batch on a busy device; None says that the device is idle. On a busy device, a
        batch that is not full and would leave nothing waiting is not decided on yet: it grows until the device is free.
        A batch `overtaking` a staged batch of that priority need not be full, but its leader must be more urgent.
        """
        moment = Moment(
            pool=self._pool,
            policy=self._policy,
            costs=self.costs,
            turns=self.turns,
            now=now,
            starts_at=now if starts_at is None else starts_at,
            seen_at=self._seen_at,
            absent=self.absent,
        )
        decision = next_batch(moment)
        self._pool.remove(decision.expired)
        expired = [ticket.item for ticket in decision.expired]
        if decision.charge is None:
            return Next(None, expired)
        if overtaking is not None:
            waits = decision.charge.leader >= overtaking
        else:
            waits = starts_at is not None and not decision.full and len(decision.batch) == self._runnable
        if waits:
            return Next(None, expired)
        self.turns.lead(decision.charge, decision.predicted_s or 0.0)
        if decision.slices:
            items = [self._cut(ticket, *own) for ticket, own in zip(decision.batch, decision.slices, strict=True)]
        else:
            self._pool.remove(decision.batch)
            items = [ticket.item for ticket in decision.batch]
        return Next(Chosen(items, decision.shape, decision.real, decision.predicted_s, decision.charge), expired)

    def _cut(self, ticket: Ticket[T], begin: int, end: int) -> T:
        """Take some rows of a block, a `BlockEntry` of the batcher's; the others wait on in its place."""
        block: Any = ticket.item
        if end - begin == ticket.waiting.rows:
            self._pool.remove([ticket])
            return ticket.item
        part: T = block.cut(begin, end)
        self._pool.replace(ticket, block.waiting)
        return part

    def ran(self, chosen: Chosen[T], model: str, shape: BatchShape | None, seconds: float) -> None:
        """Learn from a batch that ran. Without a shape, only its turns are booked."""
        if shape:
            self.costs.observe(model, shape, seconds)
        self.turns.correct(chosen.charge, seconds - (chosen.predicted_s or 0.0))

    def take(self, which: Callable[[T], bool]) -> list[T]:
        """Remove and return the items for which `which` is true."""
        return [ticket.item for ticket in self._pool.take(which)]

    @property
    def _runnable(self) -> int:
        """The number of items that wait for loaded models."""
        if not self.absent:
            return len(self._pool)
        return sum(len(lane.tickets) for (model, _, _), lane in self._pool.lanes.items() if model not in self.absent)

    def bound(self, model: str, budget: Budget) -> None:
        """Set the budget of a model, new or known."""
        self._policy = replace(self._policy, budgets={**self._policy.budgets, model: budget})

    def budget(self, model: str) -> Budget:
        return self._policy.budgets[model]
