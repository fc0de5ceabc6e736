"""The work of one device: waiting items, batches at the device, suspects; and the choice of the next batch.

There are three ways to the device. Items of one-pass models wait in the scheduler and run in micro-batches, one running
and one staged behind it (`stages`). Requests of stepwise models join those that step, as soon as there is room
(`joining`). The parts of a failed batch run alone, and nothing else runs meanwhile (`blame`).

It has no thread, clock or device: its callers have them (`workers.batching.feeder`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from workers.batching.blame import Suspects
from workers.batching.block_batches import BlockBatch, BlockEntry
from workers.batching.joining_requests import JoiningRequests
from workers.batching.microbatch import BatchRun, MicroBatch
from workers.batching.planning.cost_model import CostModel
from workers.batching.planning.policy import Budget, Policy
from workers.batching.planning.residence import AT_ONCE, Need
from workers.batching.planning.scheduler import Chosen, Scheduler
from workers.batching.planning.stage_times import Stages
from workers.batching.planning.work_seconds import Amount, WorkRates
from workers.batching.roster import ServedModel
from workers.batching.work import Entry, Expired, Group
from workers.models.interface.stepwise import StepwiseModel


class Workload:
    """Not thread-safe. Models are named by their versions' keys; `now` is Unix seconds, like the entries' times."""

    def __init__(self, models: Mapping[str, ServedModel], policy: Policy, costs: CostModel) -> None:
        self._scheduler: Scheduler[Entry] = Scheduler(policy, costs)
        self._joining = JoiningRequests(policy, costs, {key: one.budget for key, one in models.items() if _steps(one)})
        self._suspects = Suspects()
        self.rates = WorkRates(costs)
        budgets = {key: self._joining.budget(key) if _steps(one) else one.budget for key, one in models.items()}
        self.rates.known_before(budgets)
        self._given: Stages[MicroBatch] = Stages()

    # --- models ---

    def serve(self, served: ServedModel) -> None:
        """Accept items of one more model."""
        if _steps(served):
            self._joining.serve(served.key, served.budget)
        else:
            self._scheduler.bound(served.key, served.budget)

    def drop(self, model: str) -> None:
        """Forget a model without items."""
        self._joining.drop(model)

    def weigh(self, weights: Mapping[str, float]) -> None:
        """Set the weights by which tenants take turns."""
        self._scheduler.turns.weights = dict(weights)
        self._joining.weigh(weights)

    def note_absent(self, absent: Mapping[str, float]) -> None:
        """Record the models that are not loaded, with the seconds until each can be: their items are not chosen."""
        self._scheduler.absent = absent
        self._joining.note_absent(absent)

    # --- waiting items ---

    def add(self, entries: Sequence[Entry]) -> None:
        """Add entries, in order of arrival."""
        self._scheduler.add(entry for entry in entries if not self._joining.has(entry.waiting.model))
        self._joining.add(entry for entry in entries if self._joining.has(entry.waiting.model))

    def put_back(self, batch: MicroBatch) -> None:
        """Put staged entries back, before all others."""
        self._scheduler.put_back(batch.entries)

    def take_waiting(self, model: str) -> list[Entry]:
        """Remove and return the items that wait for a model. Batches at the device and suspects stay."""
        waiting = self._scheduler.take(lambda entry: entry.waiting.model == model)
        return [*waiting, *self._joining.take_waiting(model)]

    def take(self, which: Callable[[Entry], bool]) -> tuple[list[Entry], list[str]]:
        """Remove and return the entries for which `which` is true and that wait, or step without others; and the ids of
        the stepping batches for the device to drop. A batch that the device runs as a whole stays, and so do suspects.
        """
        entries = self._scheduler.take(which)
        waiting, stepping = self._joining.take(which)
        stepped = [entry for batch in stepping for entry in batch.entries]
        return [*entries, *waiting, *stepped], [batch.id for batch in stepping]

    def take_unbegun(self, which: Callable[[Entry], bool]) -> list[Entry]:
        """Remove and return the entries for which `which` is true and that the device does not have."""
        return [*self._scheduler.take(which), *self._joining.take_unbegun(which)]

    def take_all(self) -> list[Entry]:
        """Remove and return everything: the device gets no more work."""
        running, staged = self._given.lost()
        stepping = self._joining.lost()
        return [
            *self._scheduler.take(lambda _: True),
            *self._suspects.clear(),
            *self._joining.take(lambda _: True)[0],
            *(entry for batch in (*running, *staged, *stepping) for entry in batch.entries),
        ]

    def amounts(self) -> list[tuple[str, int, Amount]]:
        """Return the waiting and stepping work by model and priority, in parts. Safe from any thread."""
        return [*self._scheduler.amounts(), *self._joining.amounts()]

    def running_groups(self) -> list[Group]:
        """The groups with entries in the batch that the device runs now. Safe from any thread."""
        first = next(iter(list(self._given)), None)
        return [entry.group for entry in first.entries if entry.group] if first else []

    def with_room(self) -> set[str]:
        """The stepwise models of which the device may hold more requests than it has. Safe from any thread."""
        return self._joining.with_room()

    def ahead_s(self, running_s: float) -> tuple[float, float]:
        """Return the seconds of the batches at the device, and how much the first, which has run for `running_s`, is
        overdue. Safe from any thread.
        """
        return self._given.ahead_s(running_s)

    def needs(self) -> dict[str, Need]:
        """The need of each model with waiting items. Suspects, also those that run, count for no other model."""
        running = [batch.model for batch in self._given if batch.chosen is None]
        ordered = dict.fromkeys([*running, *self._suspects.models])
        suspected = {model: Need(AT_ONCE, float(place)) for place, model in enumerate(ordered)}
        return self._scheduler.needs() | self._joining.needs() | suspected

    # --- batches at the device ---

    @property
    def busy(self) -> set[str]:
        """The models with batches at the device."""
        return {batch.model for batch in self._given} | self._joining.running

    @property
    def running(self) -> bool:
        """Whether the device has a batch that it runs as a whole."""
        return len(self._given) > 0

    @property
    def running_batch(self) -> str | None:
        """The id of the batch that the device runs as a whole."""
        return next((batch.id for batch in self._given), None)

    @property
    def stepping(self) -> bool:
        """Whether any requests step at the device."""
        return len(self._joining) > 0

    def stepping_items(self) -> list[tuple[str, int]]:
        """The stepping items (job, seq). Safe from any thread."""
        return self._joining.items()

    def find(self, id_: str) -> MicroBatch | None:
        """Return the batch of this id, if the device has it."""
        return self._joining.find(id_) or next((batch for batch in self._given if batch.id == id_), None)

    # --- the next batch ---

    def next(self, now: float, running_s: float) -> MicroBatch | None:
        """Return the next batch for the device, if there is one, to be reported by `began` or `raised`. Items that are
        too late expire.

        `running_s` is the time for which the running batch has run.
        """
        if self._suspects or (self.running and self._given.first.chosen is None):
            return self._next_suspects(now)
        return self._next_to_join(now) or self._next_batch(now, running_s)

    def _next_suspects(self, now: float) -> MicroBatch | None:
        """Remove and return the next group of suspects, once the device is empty; nothing may be staged behind it
        either.
        """
        if self.running or self.stepping or not self._suspects:
            return None
        if self._suspects.next_model in self._scheduler.absent:
            return None
        return MicroBatch(self._suspects.next(), now)

    def _next_to_join(self, now: float) -> MicroBatch | None:
        batch, expired = self._joining.next(now)
        _expire(expired)
        return batch

    def _next_batch(self, now: float, running_s: float) -> MicroBatch | None:
        """Decide on a batch, if there is room for one or the staged batch may be overtaken."""
        behind, urgent = None, self._scheduler.most_urgent
        if not self._given.has_room:
            behind = self._given.overtakable
            if behind is None or urgent is None or urgent >= behind:
                return None
        busy_s = self._given.busy_s(running_s, overtaking=behind is not None)
        decision = self._scheduler.next(now, now + busy_s if self.running else None, overtaking=behind)
        _expire(decision.expired)
        return _formed(decision.batch, now) if decision.batch else None

    def began(self, batch: MicroBatch) -> None:
        """Record that the device was given a batch."""
        if batch.chosen and self._joining.has(batch.model):
            self._joining.began(batch)
        else:
            overtaking = not self._given.has_room
            self._given.give(batch, batch.priority, batch.predicted_s or 0.0, overtaking=overtaking)

    # --- ends ---

    def end(self, id_: str) -> MicroBatch | None:
        """Remove and return the batch of an event, unless it was dropped."""
        if stepped := self._joining.end(id_):
            return stepped
        batch = next((batch for batch in self._given if batch.id == id_), None)
        if batch is not None:
            self._given.end(batch)
        return batch

    def ran(self, batch: MicroBatch, ran: BatchRun) -> None:
        """Learn from a batch that ran."""
        if self._joining.has(batch.model):
            self._joining.ran(batch, ran.forward_s)
            budget = self._joining.budget(batch.model)
        else:
            budget = self._scheduler.budget(batch.model)
            if batch.chosen:
                # rows spared by the cache say nothing about the cost of a batch
                shape = None if ran.cached_rows else batch.shape
                self._scheduler.ran(batch.chosen, batch.model, shape, ran.forward_s)
        self.rates.ran(batch.model, budget, batch.shape, ran.forward_s, batch.predicted_s, ran.host_s)

    def raised(self, batch: MicroBatch, kind: str, message: str, traceback: str) -> None:
        """Handle a failed batch on a living device."""
        self._suspects.raised(batch, kind, message, traceback)

    def lost(self, kind: str, message: str) -> list[MicroBatch]:
        """Handle the loss of the device: every batch that may have run is suspect. Return the staged ones only, the
        last first.
        """
        suspected, innocent = self._given.lost()
        for batch in (*reversed(suspected), *self._joining.lost()):
            self._suspects.died(batch, kind, message)
        return innocent[::-1]

    def shrink(self, batch: MicroBatch) -> Budget:
        """Halve a model's budget after this batch exceeded the memory; return the budgets."""
        if self._joining.has(batch.model):
            return self._joining.shrink(batch)
        budget = self._scheduler.budget(batch.model)
        smaller = budget.halved(batch.padded_cost, batch.row_count)
        self._scheduler.bound(batch.model, smaller)
        return smaller


def _steps(served: ServedModel) -> bool:
    return isinstance(served.model, StepwiseModel)


def _formed(chosen: Chosen[Entry], now: float) -> MicroBatch:
    form = BlockBatch if isinstance(chosen.items[0], BlockEntry) else MicroBatch
    return form(chosen.items, now, chosen)


def _expire(entries: Iterable[Entry]) -> None:
    for entry in entries:
        entry.finish(Expired())
