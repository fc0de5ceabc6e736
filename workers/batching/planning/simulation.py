"""A simulated device and a virtual clock: runs the policy on a trace of arrivals, without waiting.

It uses the batcher's scheduler, and feeds its device in the same way (`workers.batching.planning.stage_times`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from workers.batching.planning.cost_model import BatchShape, CostModel
from workers.batching.planning.policy import Policy
from workers.batching.planning.scheduler import Chosen, Scheduler
from workers.batching.planning.stage_times import Stages
from workers.batching.planning.waiting_pool import Waiting

#: The seconds of a batch on the device, by model and shape.
Device: TypeAlias = Callable[[str, BatchShape], float]


@dataclass(slots=True, eq=False)
class Arrival:
    """An item of a trace and its outcome: the begin and end of its batch, or that it expired."""

    waiting: Waiting
    began_at: float | None = None
    ended_at: float | None = None
    expired: bool = False

    @property
    def latency_s(self) -> float:
        assert self.ended_at is not None, "it was not computed"
        return self.ended_at - self.waiting.arrived_at


@dataclass(frozen=True, slots=True)
class SimulatedBatch:
    """A batch that the simulated device ran."""

    began_at: float
    seconds: float
    shape: BatchShape
    real: int
    leader: int  # priority
    items: Sequence[Arrival]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a trace."""

    arrivals: Sequence[Arrival]
    batches: Sequence[SimulatedBatch]

    @property
    def waste(self) -> float:
        """The share of the padded cost that was padding."""
        return 1 - sum(ran.real for ran in self.batches) / max(sum(ran.shape.padded for ran in self.batches), 1)

    def share(self, priority: int, since: float = 0.0, until: float = float("inf")) -> float:
        """The share of device time of the batches led by a priority, of those begun in an interval."""
        within = [ran for ran in self.batches if since <= ran.began_at < until]
        led = sum(ran.seconds for ran in within if ran.leader == priority)
        return led / max(sum(ran.seconds for ran in within), 1e-12)


@dataclass(slots=True, eq=False)
class _RunningBatch:
    chosen: Chosen[Arrival]
    seconds: float


@dataclass(slots=True)
class Machine:
    """The device and its batches."""

    scheduler: Scheduler[Arrival]
    device: Device
    stages: Stages[_RunningBatch] = field(default_factory=Stages)
    began_at: float = 0.0  # when the running batch began
    batches: list[SimulatedBatch] = field(default_factory=list)

    @property
    def next_end_at(self) -> float:
        return self.began_at + self.stages.first.seconds if len(self.stages) else math.inf

    def feed(self, now: float) -> None:
        """Give the device batches while there is room."""
        while self.stages.has_room:
            if not self._give(now, None):
                return
        behind, urgent = self.stages.overtakable, self.scheduler.most_urgent
        if behind is not None and urgent is not None and urgent < behind:
            self._give(now, behind)

    def finish(self) -> float:
        """End the running batch; return its end."""
        given, ended_at = self.stages.first, self.next_end_at
        for arrival in given.chosen.items:
            arrival.ended_at = ended_at
        self.scheduler.ran(given.chosen, given.chosen.items[0].waiting.model, given.chosen.shape, given.seconds)
        self.stages.end(given)
        if len(self.stages):
            self._begin(ended_at)
        return ended_at

    def _give(self, now: float, behind: int | None) -> bool:
        busy_s = self.stages.busy_s(now - self.began_at, overtaking=behind is not None)
        starts_at = now + busy_s if len(self.stages) else None
        decision = self.scheduler.next(now, starts_at, overtaking=behind)
        for arrival in decision.expired:
            arrival.expired = True
        if decision.batch is None:
            return False
        chosen = decision.batch
        given = _RunningBatch(chosen, self.device(chosen.items[0].waiting.model, chosen.shape))
        priority, predicted_s = chosen.charge.leader, chosen.predicted_s or 0.0
        self.stages.give(given, priority, predicted_s, overtaking=behind is not None)
        if len(self.stages) == 1:
            self._begin(now)
        return True

    def _begin(self, at: float) -> None:
        given = self.stages.first
        chosen = given.chosen
        self.began_at = at
        for arrival in chosen.items:
            arrival.began_at = at
        self.batches.append(
            SimulatedBatch(at, given.seconds, chosen.shape, chosen.real, chosen.charge.leader, chosen.items)
        )


def simulate(
    trace: Iterable[Waiting],
    policy: Policy,
    device: Device,
    *,
    costs: CostModel | None = None,
    weights: Mapping[str, float] | None = None,
) -> Outcome:
    """Run a trace, in order of arrival, to its end. `costs` is the knowledge of the device before the first batch."""
    machine = Machine(Scheduler(policy, costs or CostModel(), weights), device)
    arrivals = [Arrival(waiting) for waiting in trace]
    place, now = 0, 0.0
    while place < len(arrivals) or len(machine.stages):
        coming_at = arrivals[place].waiting.arrived_at if place < len(arrivals) else math.inf
        if machine.next_end_at <= coming_at:
            now = machine.finish()
        else:
            now = coming_at
            while place < len(arrivals) and arrivals[place].waiting.arrived_at <= now:
                machine.scheduler.add([arrivals[place]])
                place += 1
        machine.feed(now)
    return Outcome(arrivals, machine.batches)
