"""Requests of stepwise models: each joins the requests that step at the device as soon as there is room.

The device holds more requests than take part in a step (`workers.models.interface.step_rota` chooses), so that a short
request does not wait for a long one, nor an urgent one for any. The sum of their costs is bounded, since cost stands
for memory on the device. Requests more urgent than all that the device holds get the same room once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from workers.batching.microbatch import MicroBatch
from workers.batching.planning.cost_model import BatchShape, CostModel
from workers.batching.planning.policy import Budget, Policy
from workers.batching.planning.residence import Need
from workers.batching.planning.scheduler import Scheduler
from workers.batching.planning.work_seconds import Amount
from workers.batching.work import Entry


@dataclass(slots=True)
class _Model:
    """The waiting and stepping requests of one model, and the bound of the latter."""

    scheduler: Scheduler[Entry]
    budget: Budget
    stepping: dict[str, MicroBatch] = field(default_factory=dict)

    def has_room(self) -> bool:
        urgent = self.scheduler.most_urgent
        if urgent is None:
            return len(self.scheduler) > 0  # a request that waits for an unloaded model may expire
        batches = self.stepping.values()
        rows = sum(len(batch.rows) for batch in batches)
        cost = sum(row.size for batch in batches for row in batch.rows)
        ahead = all(urgent < batch.priority for batch in batches)
        times = 2 if ahead else 1
        return rows < times * self.budget.rows and (not rows or cost < times * self.budget.cost)


class JoiningRequests:
    """All stepwise models of one device. Not thread-safe."""

    def __init__(self, policy: Policy, costs: CostModel, budgets: Mapping[str, Budget]) -> None:
        self._policy = policy
        self._costs = costs
        self._weights: Mapping[str, float] = {}
        self._models: dict[str, _Model] = {}
        for name, budget in budgets.items():
            self.serve(name, budget)

    def __len__(self) -> int:
        """The number of stepping batches."""
        return sum(len(model.stepping) for model in self._models.values())

    def serve(self, model: str, budget: Budget) -> None:
        """Accept requests of one more model."""
        # a budget of one row: no request waits for others to join together with it
        policy = _one_by_one(self._policy, model, budget)
        self._models[model] = _Model(Scheduler(policy, self._costs, self._weights), budget)

    def drop(self, model: str) -> None:
        """Forget a stepwise model that has neither waiting nor stepping requests."""
        self._models.pop(model, None)

    def has(self, model: str) -> bool:
        return model in self._models

    def add(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self._models[entry.waiting.model].scheduler.add([entry])

    def weigh(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        for model in self._models.values():
            model.scheduler.turns.weights = dict(weights)

    def note_absent(self, absent: Mapping[str, float]) -> None:
        """Record the models that are not loaded, with the seconds until each can be."""
        for model in self._models.values():
            model.scheduler.absent = absent

    def amounts(self) -> list[tuple[str, int, Amount]]:
        """Return the waiting and stepping work by model and priority. Safe from any thread, like `items`."""
        models = list(self._models.values())
        stepping = [
            (batch.model, batch.priority, batch.amount) for model in models for batch in list(model.stepping.values())
        ]
        return [*stepping, *(amount for model in models for amount in model.scheduler.amounts())]

    def budget(self, model: str) -> Budget:
        """The bounds of a batch of a model: a request is a batch of its own."""
        return Budget(self._models[model].budget.cost, 1)

    def with_room(self) -> set[str]:
        """The models that the device holds fewer requests of than it may, if all that wait join. For any thread."""
        found = set()
        for name, model in list(self._models.items()):
            stepping = sum(len(batch.rows) for batch in list(model.stepping.values()))
            if stepping + len(model.scheduler) < model.budget.rows:
                found.add(name)
        return found

    def needs(self) -> dict[str, Need]:
        """The need of each model with waiting requests."""
        return {name: need for model in self._models.values() for name, need in model.scheduler.needs().items()}

    def next(self, now: float) -> tuple[MicroBatch | None, list[Entry]]:
        """Return a batch that may join now, if there is any, and the entries whose deadline has passed."""
        expired: list[Entry] = []
        for model in self._models.values():
            if not model.has_room():
                continue
            decision = model.scheduler.next(now)
            expired += decision.expired
            if decision.batch is not None:
                return MicroBatch(decision.batch.items, now, decision.batch), expired
        return None, expired

    def items(self) -> list[tuple[str, int]]:
        """The stepping items (job, seq). Safe from any thread: each dict is copied at once."""
        batches = [batch for model in self._models.values() for batch in list(model.stepping.values())]
        return [(entry.job, entry.seq) for batch in batches for entry in batch.entries]

    def began(self, batch: MicroBatch) -> None:
        self._models[batch.model].stepping[batch.id] = batch

    def end(self, id_: str) -> MicroBatch | None:
        """Remove and return the batch of this id, if it steps."""
        return next((found for model in self._models.values() if (found := model.stepping.pop(id_, None))), None)

    def find(self, id_: str) -> MicroBatch | None:
        return next((model.stepping[id_] for model in self._models.values() if id_ in model.stepping), None)

    def ran(self, batch: MicroBatch, seconds: float) -> None:
        """Learn from a finished batch; its seconds count as its part of the device's time."""
        if batch.chosen:
            shape = BatchShape(batch.padded_cost, len(batch.rows), batch.shape.heads)
            self._models[batch.model].scheduler.ran(batch.chosen, batch.model, shape, seconds)

    def take_waiting(self, model: str) -> list[Entry]:
        """Remove and return the requests that wait for a model; stepping requests go on."""
        return self._models[model].scheduler.take(lambda _: True) if model in self._models else []

    @property
    def running(self) -> set[str]:
        """The models with stepping requests."""
        return {name for name, model in self._models.items() if model.stepping}

    def take_unbegun(self, which: Callable[[Entry], bool]) -> list[Entry]:
        """Remove and return the waiting entries for which `which` is true."""
        return [entry for model in self._models.values() for entry in model.scheduler.take(which)]

    def take(self, which: Callable[[Entry], bool]) -> tuple[list[Entry], list[MicroBatch]]:
        """Remove and return the waiting entries for which `which` is true, and the batches of such entries alone."""
        waiting = self.take_unbegun(which)
        stepping = [
            batch
            for model in self._models.values()
            for batch in model.stepping.values()
            if all(map(which, batch.entries))
        ]
        for batch in stepping:
            self.end(batch.id)
        return waiting, stepping

    def lost(self) -> list[MicroBatch]:
        """Remove and return all stepping requests, one batch per model: any of them may have ended the device."""
        found = []
        for model in self._models.values():
            if model.stepping:
                found.append(together(list(model.stepping.values())))
                model.stepping.clear()
        return found

    def shrink(self, batch: MicroBatch) -> Budget:
        """Halve the bound of stepping requests, after `batch` exceeded the memory; return the bounds."""
        model = self._models[batch.model]
        model.budget = model.budget.halved(sum(row.size for row in batch.rows), len(batch.rows))
        return model.budget


def together(batches: list[MicroBatch]) -> MicroBatch:
    """Return one batch of the entries of several batches, as suspects."""
    if len(batches) == 1:
        return batches[0]
    return MicroBatch([entry for batch in batches for entry in batch.entries], batches[0].formed_at)


def _one_by_one(policy: Policy, name: str, budget: Budget) -> Policy:
    return Policy(
        budgets={name: Budget(budget.cost, 1)},
        guaranteed_shares=policy.guaranteed_shares,
        promised_wait_s=policy.promised_wait_s,
        stages=policy.stages,
    )
