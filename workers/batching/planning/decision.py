"""Chooses the waiting items of the next micro-batch: a pure function, without I/O, clock or threads.

The order of decisions:

1. Items that cannot meet their deadline are set aside and never computed. Such an item would be late even alone in a
   batch, and even if its model, where it is not loaded, came at once.
2. The *leader* is the next item to run, of a loaded model: the item of the most urgent priority that has waited
   longest. A less urgent priority leads instead when the device owes it time (`Turns`): its guaranteed share, or at
   least `AGED_SHARE` once its oldest item has *aged*, that is, waited `aged_after_s`. The tenants of a priority take
   turns by weight. The leader always runs, whatever its cost; above the budget it runs alone.
3. Companions share the leader's model and priority. They are the items nearest to it in size, of the oldest `window` in
   their lane. An item that would leave less than `least_real_share` of the padded cost real is an outlier and waits for
   its own kind.
4. Riders, less urgent items that widen no row, fill the room left over, until the fixed part of the batch's time is
   `RIDERS_FIXED_SHARE` of it. Beyond that point they would gain nothing, and the leader would wait for them.
5. Items whose content is already in the batch join it, however urgent: they share its row and cost nothing.

If the leader is a block, the batch has its largest row, and of the blocks of its lane the rows next in size, as many as
fit by the same limits. The other rows wait as they did: a block keeps the device for a single batch at a time. No items
join.

The cost of a batch is padded: rows times the largest row. It stays within the budget. The predicted time stays within a
`stages`-th of the tightest promise to a more urgent priority that was seen lately, but need not be shorter than the
time at which the fixed part is `MOST_FIXED_SHARE`. The batch ends before the deadline of each of its items, as far as
predictions go.

**The longest wait.** Let D be the longest batch in seconds, P the number of priorities, and S the sum of the shares of
the less urgent priorities (`MARGIN` included). Let k items of the same priority, all of one tenant, wait before an item
arrives. Each batch that its priority leads takes the oldest item, so the item is in the (k+1)-th at the latest. Its
batch begins within

- (k + 2P - 1)·D / (1 - S) + (`stages` + 1)·D for the most urgent priority;
- (`MOST_AHEAD_S` + (k + 3P - 1)·D) / r + (`stages` + 1)·D for any other, with r the smaller of 1 - S and its share.
  Without a guaranteed share, its share is `AGED_SHARE`, and `aged_after_s` is added.

Proof. The debts to all priorities together never exceed (P - 1)·D: the priority with the largest debt leads and pays
the batch's whole time, or its debt was less than D, like all others. While a priority waits below a more urgent one, it
earns its share s of the time and pays D for each batch it leads, from -`MOST_AHEAD_S` - D at the least. After t seconds
and j leads its debt is no less than s·t - `MOST_AHEAD_S` - (j + 1)·D, hence s·t <= `MOST_AHEAD_S` + (j + P)·D. While
nothing more urgent waits, it leads unless another priority is owed time: that priority takes its share, (P - 1)·D owed
at the start, and as much in excess at the end. A batch may run before a debt is seen, `stages` are at the device
already, and one more may overtake there. tests/unit/test_waits.py checks the bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from workers.batching.planning.cost_model import BatchShape
from workers.batching.planning.forming import Forming
from workers.batching.planning.policy import Moment
from workers.batching.planning.tenant_turns import Charge, Turns
from workers.batching.planning.waiting_pool import Lane, Pool, Ticket, Waiting

T = TypeVar("T")

#: Shares aim at this multiple of the guaranteed minimum, since counts are off by up to a batch.
MARGIN = 1.05

#: The share of the device for a priority whose oldest item has aged.
AGED_SHARE = 0.05

NOTHING = BatchShape(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Decision(Generic[T]):
    """A decision: the items of the next batch, leader first, the late items, and the meaning of the batch for turns.

    `full` says that no further row would fit. `real` is the cost of the rows without padding. `predicted_s` is None
    while too little is known. If the leader is a block, all are, and the batch has these `slices` of their rows.
    """

    batch: tuple[Ticket[T], ...] = ()
    expired: tuple[Ticket[T], ...] = ()
    shape: BatchShape = NOTHING
    real: int = 0
    predicted_s: float | None = None
    full: bool = False
    charge: Charge | None = None
    slices: tuple[tuple[int, int], ...] = ()


def next_batch(moment: Moment[T]) -> Decision[T]:
    """Return the next micro-batch from the pool, which stays unchanged. The module's docstring has the rules."""
    expired = tuple(_late(moment))
    gone = {ticket.number for ticket in expired}
    oldest = _oldest(moment, gone)
    if not oldest:
        return Decision(expired=expired)
    shares = _shares(moment, oldest)
    priority = _leading(moment.turns, oldest, shares)
    tenant = moment.turns.next_tenant(priority, oldest[priority])
    batch = Forming(moment, oldest[priority][tenant], gone)
    if not batch.slices:
        for lane in _companions(moment, batch.leader):
            batch.gather(lane)
        for lane in _riders(moment.pool, batch.leader):
            batch.fill(lane)
        batch.add_twins()
    return Decision(
        tuple(batch.tickets),
        expired,
        batch.shape,
        batch.real,
        batch.predicted_s,
        batch.full,
        Charge(priority, tenant, shares, batch.parts()),
        tuple(batch.slices),
    )


def _late(moment: Moment[T]) -> Iterator[Ticket[T]]:
    """Yield the items that would miss their deadline even in a batch of their own."""
    largest: dict[str, int] = {}
    for (model, _, _), lane in moment.pool.lanes.items():
        largest[model] = max(largest.get(model, 1), lane.widest)
    longest = [
        moment.begins_at(model) + 2 * (moment.costs.seconds(model, BatchShape(cost, 1, 1)) or 0.0)
        for model, cost in largest.items()
    ]
    for ticket in moment.pool.due(max(longest, default=moment.starts_at)):
        waiting = ticket.waiting
        alone_s = moment.costs.seconds(waiting.model, BatchShape(waiting.widest, 1, waiting.row_heads)) or 0.0
        if waiting.deadline_at is not None and waiting.deadline_at <= moment.begins_at(waiting.model) + alone_s:
            yield ticket


def _oldest(moment: Moment[T], gone: set[int]) -> dict[int, dict[str, Ticket[T]]]:
    """Return the oldest item by priority and tenant, of the loaded models."""
    found: dict[int, dict[str, Ticket[T]]] = {}
    for (model, priority, tenant), lane in moment.pool.lanes.items():
        if model in moment.absent:
            continue
        first = next((ticket for number, ticket in lane.tickets.items() if number not in gone), None)
        if first is None:
            continue
        of_tenants = found.setdefault(priority, {})
        if tenant not in of_tenants or first.number < of_tenants[tenant].number:
            of_tenants[tenant] = first
    return found


def _shares(moment: Moment[T], oldest: Mapping[int, Mapping[str, Ticket[T]]]) -> dict[int, float]:
    """Return the share that each waiting priority below the most urgent one is entitled to."""
    shares: dict[int, float] = {}
    for priority in sorted(oldest)[1:]:
        share = moment.policy.guaranteed_shares.get(priority, 0.0) * MARGIN
        arrived_at = min(ticket.waiting.arrived_at for ticket in oldest[priority].values())
        if moment.now - arrived_at >= moment.policy.aged_after_s:
            share = max(share, AGED_SHARE)
        if share:
            shares[priority] = share
    return shares


def _leading(turns: Turns, oldest: Mapping[int, object], shares: Mapping[int, float]) -> int:
    """Return the priority whose turn it is: the priority with the largest debt, or else the most urgent."""
    owed = [(turns.owed_s(priority), priority) for priority in shares]
    most_s, priority = max(owed, default=(0.0, 0))
    return priority if most_s > 0 else min(oldest)


def _companions(moment: Moment[T], leader: Waiting) -> list[Lane[T]]:
    """Return the lanes of the leader's model and priority: its tenant's first, then the others by their turns."""
    lanes = moment.pool.lanes
    own = [lanes[leader.lane]]
    tenants = [tenant for model, priority, tenant in lanes if (model, priority) == (leader.model, leader.priority)]
    tenants.remove(leader.tenant)
    while tenants:
        tenant = moment.turns.next_tenant(leader.priority, tenants)
        own.append(lanes[leader.model, leader.priority, tenant])
        tenants.remove(tenant)
    return own


def _riders(pool: Pool[T], leader: Waiting) -> list[Lane[T]]:
    """Return the less urgent lanes of the leader's model, most urgent first."""
    less = [key for key in pool.lanes if key[0] == leader.model and key[1] > leader.priority]
    return [pool.lanes[key] for key in sorted(less)]
