"""A device that exists only as numbers, and a virtual clock: what the policy does with a trace of arrivals, without waiting.

It runs the same scheduler as the batcher, and feeds its device in the same way: one batch running, one staged.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from workers.batching.cost import CostModel, Shape
from workers.batching.policy import Policy
from workers.batching.pool import Waiting
from workers.batching.scheduler import Chosen, Scheduler

#: How long a batch takes on the device, by model and shape.
Device: TypeAlias = Callable[[str, Shape], float]


@dataclass(slots=True, eq=False)
class Arrival:
    """An item of a trace and what became of it: when its batch began and ended, or that it expired."""

    waiting: Waiting
    began_at: float | None = None
    ended_at: float | None = None
    expired: bool = False

    @property
    def latency_s(self) -> float:
        assert self.ended_at is not None, "it was not computed"
        return self.ended_at - self.waiting.arrived_at


@dataclass(frozen=True, slots=True)
class Ran:
    """A batch that the simulated device ran."""

    began_at: float
    seconds: float
    shape: Shape
    real: int
    leader: int  # priority
    items: Sequence[Arrival]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a trace."""

    arrivals: Sequence[Arrival]
    batches: Sequence[Ran]

    @property
    def waste(self) -> float:
        """The share of the padded cost that was padding."""
        return 1 - sum(ran.real for ran in self.batches) / max(sum(ran.shape.padded for ran in self.batches), 1)

    def share(self, priority: int, since: float = 0.0, until: float = float("inf")) -> float:
        """The share of device time that went to batches led by a priority, of those begun in an interval."""
        within = [ran for ran in self.batches if since <= ran.began_at < until]
        led = sum(ran.seconds for ran in within if ran.leader == priority)
        return led / max(sum(ran.seconds for ran in within), 1e-12)


@dataclass(slots=True)
class _Machine:
    """The device and the batches it was given: the first runs, the others are staged."""

    scheduler: Scheduler[Arrival]
    device: Device
    depth: int
    given: deque[tuple[Ran, Chosen[Arrival]]] = field(default_factory=deque)
    batches: list[Ran] = field(default_factory=list)

    @property
    def free_at(self) -> float:
        ran, _ = self.given[-1]
        return ran.began_at + ran.seconds

    @property
    def next_end_at(self) -> float:
        ran, _ = self.given[0]
        return ran.began_at + ran.seconds

    def feed(self, now: float) -> None:
        """Hand over batches while there is room."""
        while len(self.given) < self.depth:
            decision = self.scheduler.next(now, self._expected_at(now) if self.given else None)
            for arrival in decision.expired:
                arrival.expired = True
            if decision.batch is None:
                return
            self._begin(decision.batch, max(now, self.free_at) if self.given else now)

    def finish(self) -> float:
        """End the batch that runs; return when that is."""
        ran, chosen = self.given.popleft()
        ended_at = ran.began_at + ran.seconds
        for arrival in ran.items:
            arrival.ended_at = ended_at
        self.scheduler.ran(chosen, chosen.items[0].waiting.model, ran.shape, ran.seconds)
        return ended_at

    def _begin(self, chosen: Chosen[Arrival], at: float) -> None:
        seconds = self.device(chosen.items[0].waiting.model, chosen.shape)
        ran = Ran(at, seconds, chosen.shape, chosen.real, chosen.charge.leader, chosen.items)
        for arrival in chosen.items:
            arrival.began_at = at
        self.given.append((ran, chosen))
        self.batches.append(ran)

    def _expected_at(self, now: float) -> float:
        """When the device will be free, as far as can be predicted."""
        first, _ = self.given[0]
        predicted = [chosen.predicted_s or 0.0 for _, chosen in self.given]
        return max(now, first.began_at + predicted[0]) + sum(predicted[1:])


def simulate(
    trace: Iterable[Waiting],
    policy: Policy,
    device: Device,
    *,
    costs: CostModel | None = None,
    weights: Mapping[str, float] | None = None,
    depth: int = 2,
) -> Outcome:
    """Run a trace, in order of arrival, to its end. `costs` is what is known of the device before the first batch."""
    machine = _Machine(Scheduler(policy, costs or CostModel(), weights), device, depth)
    arrivals = [Arrival(waiting) for waiting in trace]
    place, now = 0, 0.0
    while place < len(arrivals) or machine.given:
        coming_at = arrivals[place].waiting.arrived_at if place < len(arrivals) else math.inf
        if machine.given and machine.next_end_at <= coming_at:
            now = machine.finish()
        else:
            now = coming_at
            while place < len(arrivals) and arrivals[place].waiting.arrived_at <= now:
                machine.scheduler.add([arrivals[place]])
                place += 1
        machine.feed(now)
    return Outcome(arrivals, machine.batches)
