"""A small tenant beside a large one, through everything that queues: Redis lanes, a worker's slots, its batcher, its
device.

On a virtual clock, with the parts that decide in a real worker: `LaneTurns` chooses the envelope for a free slot, the
scheduler the items of a batch.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

import pytest

from workers.batching.planning.cost_model import BatchShape, CostModel
from workers.batching.planning.policy import Budget, Policy
from workers.batching.planning.scheduler import Scheduler
from workers.batching.planning.simulation import Arrival, Machine
from workers.batching.planning.waiting_pool import Waiting
from workers.node.lanes import LaneTurns, may_take

SLOTS = 64  # worker.concurrency
PACKED = 64  # items in a full envelope


def device(model: str, shape: BatchShape) -> float:
    return 0.002 + 2e-4 * shape.padded + 1e-4 * shape.rows


@dataclass
class Worker:
    """A worker node with its queues in Redis: `waiting` has the sizes of the envelopes of each tenant's lane."""

    weights: dict[str, float]
    waiting: dict[str, deque[int]] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)  # an envelope's name, and its items that have not ended
    envelope_of: dict[int, str] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)
    now: float = 0.0

    def __post_init__(self) -> None:
        policy = Policy(budgets={"text": Budget(1024, 32)}, guaranteed_shares={9: 0.1})
        scheduler: Scheduler[Arrival] = Scheduler(policy, CostModel(), self.weights)
        self.machine = Machine(scheduler, device)
        self.turns = LaneTurns(lambda tenant: self.weights.get(tenant, 1.0))

    def submit(self, tenant: str, items: int) -> None:
        full, rest = divmod(items, PACKED)
        self.waiting[tenant] = deque([PACKED] * full + [rest] * (rest > 0))
        self.turns.update(self.waiting)
        self._take()

    def step(self) -> None:
        """Run until the batch on the device has ended."""
        items = self.machine.stages.first.chosen.items
        self.now = self.machine.finish()
        for item in items:
            tenant = item.waiting.tenant
            self.done[tenant] = self.done.get(tenant, 0) + 1
            envelope = self.envelope_of.pop(id(item))
            self.held[envelope] -= 1
            if not self.held[envelope]:
                del self.held[envelope]
        self._take()

    def _next(self) -> str | None:
        held = Counter(envelope.partition(" ")[0] for envelope in self.held)
        free = SLOTS - len(self.held)
        asked = [name for name in self.turns.consume(len(self.waiting)) if may_take(held[name], free)]
        return next((name for name in asked if self.waiting[name]), None)

    def _take(self) -> None:
        while (tenant := self._next()) is not None:
            self.turns.rotate(tenant)
            count = self.waiting[tenant].popleft()
            envelope = f"{tenant} {len(self.waiting[tenant])}"
            self.held[envelope] = count
            items = [Arrival(Waiting("text", 9, 20 + n % 12, self.now, tenant=tenant)) for n in range(count)]
            self.envelope_of |= {id(item): envelope for item in items}
            self.machine.scheduler.add(items)
        self.machine.feed(self.now)


def completion_s(worker: Worker, tenant: str, items: int) -> float:
    """Submit so many items for a tenant now; return how long they take."""
    began_at = worker.now
    worker.submit(tenant, items)
    while worker.done.get(tenant, 0) < items:
        worker.step()
    return worker.now - began_at


@pytest.mark.parametrize("items", [100, 1_000])
def test_a_hundred_rows_behind_a_million(items: int) -> None:
    """They take at most three times as long as alone, though a worker is full of the other's envelopes when they
    come.
    """
    alone_s = completion_s(Worker({}), "small", items)
    worker = Worker({})
    worker.submit("large", 1_000_000)
    for _ in range(300):
        worker.step()
    assert len(worker.held) > SLOTS / 2
    assert completion_s(worker, "small", items) <= 3 * alone_s
    assert worker.done["large"] < 20_000


def test_weights_hold_through_all_queues() -> None:
    """Of two tenants that both have more than enough, one with three times the weight gets three quarters of the
    rows.
    """
    worker = Worker({"heavy": 3.0, "light": 1.0})
    worker.submit("heavy", 100_000)
    worker.submit("light", 100_000)
    for _ in range(400):
        worker.step()
    assert worker.done["heavy"] / (worker.done["heavy"] + worker.done["light"]) == pytest.approx(0.75, abs=0.03)


def test_many_tenants_share_alike() -> None:
    """Twenty with the same to do are done at about the same time, not one after the other."""
    worker = Worker({})
    names = [f"tenant-{number}" for number in range(20)]
    for name in names:
        worker.submit(name, 2_000)
    while sum(worker.done.values()) < 20_000:
        worker.step()
    assert min(worker.done[name] for name in names) >= 0.7 * max(worker.done.values())
