"""The waiting items of one device and all that the policy must remember between two decisions, without threads or clock.

The batcher drives it with a real device, the simulation with a virtual one: what is tested in the second is what runs in
the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

from workers.batching.planning.cost_model import CostModel, Shape
from workers.batching.planning.decision import next_batch
from workers.batching.planning.policy import Budget, Moment, Policy
from workers.batching.planning.residence import Need
from workers.batching.planning.tenant_turns import Charge, Turns
from workers.batching.planning.waiting_pool import Pool, Waiting


class Waits(Protocol):
    """Whatever has a place in the queue."""

    @property
    def waiting(self) -> Waiting: ...


T = TypeVar("T", bound=Waits)


@dataclass(frozen=True, slots=True)
class Chosen(Generic[T]):
    """A batch that was decided on: its items, the leader first, and what it is predicted to take.

    `shape` and `real`, the rows' cost without padding, are as the policy saw them.
    """

    items: list[T]
    shape: Shape
    real: int
    predicted_s: float | None
    charge: Charge


@dataclass(frozen=True, slots=True)
class Next(Generic[T]):
    """A decision: the batch, if anything waits, and the items that can no longer make it."""

    batch: Chosen[T] | None
    expired: list[T] = field(default_factory=list)


class Scheduler(Generic[T]):
    """Not thread-safe. Times are seconds of the caller's clock. `absent` are the models that are not loaded, with the seconds
    until they can be: nothing of theirs is decided on.
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
        """Take items, in order of arrival."""
        for item in items:
            waiting = item.waiting
            self._pool.add(waiting, item)
            self._seen_at[waiting.priority] = max(waiting.arrived_at, self._seen_at.get(waiting.priority, 0.0))

    def put_back(self, items: Iterable[T]) -> None:
        """Take items again that were in a batch and did nothing wrong, before all others."""
        self._pool.put_back((item.waiting, item) for item in items)

    @property
    def most_urgent(self) -> int | None:
        """The most urgent priority that waits and can run."""
        return min((priority for model, priority, _ in self._pool.lanes if model not in self.absent), default=None)

    def needs(self) -> dict[str, Need]:
        """What waits for each model."""
        found: dict[str, Need] = {}
        for (model, priority, _), lane in self._pool.lanes.items():
            need = Need(priority, lane.oldest.waiting.arrived_at)
            found[model] = need.merged(found[model]) if model in found else need
        for model in self.absent.keys() & found.keys():
            found[model] = replace(found[model], deadline_at=self._pool.first_deadline_at(model))
        return found

    def next(self, now: float, starts_at: float | None = None, *, overtaking: int | None = None) -> Next[T]:
        """Decide on the next batch; it leaves the queue, with what expired.

        `starts_at` is when a busy device will begin it; None says that the device is idle. For a busy one, a batch that is
        not full and would leave nothing waiting is not decided on yet: it goes on growing until the device is free. A batch
        that is to be `overtaking` one of that priority need not be full, but must be led by a more urgent item.
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
        self._pool.remove(decision.batch)
        self.turns.lead(decision.charge, decision.predicted_s or 0.0)
        items = [ticket.item for ticket in decision.batch]
        return Next(Chosen(items, decision.shape, decision.real, decision.predicted_s, decision.charge), expired)

    def ran(self, chosen: Chosen[T], model: str, shape: Shape | None, seconds: float) -> None:
        """Learn from a batch that has run; without a shape only what it means for the turns."""
        if shape:
            self.costs.observe(model, shape, seconds)
        self.turns.correct(chosen.charge, seconds - (chosen.predicted_s or 0.0))

    def take(self, which: Callable[[T], bool]) -> list[T]:
        """Remove and return the items of which `which` is true."""
        return [ticket.item for ticket in self._pool.take(which)]

    @property
    def _runnable(self) -> int:
        """How many items wait for models that are loaded."""
        if not self.absent:
            return len(self._pool)
        return sum(len(lane.tickets) for (model, _, _), lane in self._pool.lanes.items() if model not in self.absent)

    def bound(self, model: str, budget: Budget) -> None:
        """Bound a model's batches from now on, a new model's too."""
        self._policy = replace(self._policy, budgets={**self._policy.budgets, model: budget})

    def budget(self, model: str) -> Budget:
        return self._policy.budgets[model]
