"""Which waiting items form the next micro-batch: a pure function, without I/O, clock or threads.

The order of decisions:

1. Items that can no longer make it, because their batch would end after their deadline though they were alone in it
   (and their model, if it is not loaded, came at once), are set aside; they are never computed.
2. Of the models that are loaded, the *leader* is the item that must go now: of the most urgent priority the one that waited longest. A less urgent
   priority leads instead when it is owed device time (`Turns`): its guaranteed share, or, once its oldest item has
   *aged*, waited `aged_after_s`, at least `AGED_SHARE`. Between the tenants of that priority, turns are taken by weight.
   The leader always runs, whatever it costs; if it costs more than the budget, alone.
3. Companions of the leader's model and priority are those nearest to it in size, of the oldest `window` in their lane.
   One that would leave less than `least_real_share` of the padded cost real is an outlier and waits for its own kind.
4. Room left over is filled with less urgent items that widen nothing, up to where the fixed part of the batch's time
   is `RIDERS_FIXED_SHARE` of it: beyond that they would ride for nothing, and the leader would wait for them.
5. Items of the same content as one that goes, however urgent, go with it: they are the same row, and cost nothing.

A batch's cost is padded: rows times the largest row. It stays within the budget; its predicted time stays within a
`stages`-th of the tightest promise to a more urgent priority that was seen lately, but need not be shorter than
where its fixed part is `MOST_FIXED_SHARE`; and it ends before the deadline of each item in it, as far as can be predicted.

**The longest wait.** Let D be the longest batch in seconds, P the number of priorities, S the sum of the shares of the
less urgent ones (`MARGIN` included), and let k items of its own priority wait before an item that arrives, all of one tenant. Each batch that
its priority leads takes the oldest, so the item goes with the (k+1)-th at the latest. Its batch begins within

- (k + 2P - 1)·D / (1 - S) + (`stages` + 1)·D, where its priority is the most urgent one;
- (`MOST_AHEAD_S` + (k + 3P - 1)·D) / r + (`stages` + 1)·D elsewhere, with r the smaller of 1 - S and its share. Without a
  guaranteed one its share is `AGED_SHARE`, and `aged_after_s` is added.

For: what all are owed together never exceeds (P - 1)·D, since whoever is owed most leads and pays the batch's whole time,
or else was owed less than D like all others. While a priority waits below a more urgent one, it earns its share s of the
time and pays D for each batch it leads, from -`MOST_AHEAD_S` - D at the least: after t seconds and j leads it is owed no less
than s·t - `MOST_AHEAD_S` - (j + 1)·D, hence s·t <= `MOST_AHEAD_S` + (j + P)·D. While nothing more urgent waits, it leads unless another
is owed: that one's part of the time is its share, (P - 1)·D owed at the start, and as much taken too much at the end. One
batch may run before a debt is seen, `stages` are at the device already, and one may overtake it there. tests/unit/test_waits.py holds the policy to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from workers.batching.planning.cost_model import Shape
from workers.batching.planning.forming import Forming
from workers.batching.planning.policy import Moment
from workers.batching.planning.tenant_turns import Charge, Turns
from workers.batching.planning.waiting_pool import Lane, Pool, Ticket, Waiting

T = TypeVar("T")

#: A guaranteed share is the least there may be: what is aimed at is this much more, since a count is off by a batch.
MARGIN = 1.05

#: The share of the device that a priority is guaranteed once its oldest item has aged.
AGED_SHARE = 0.05

NOTHING = Shape(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Decision(Generic[T]):
    """The items of the next batch, the leader first; those that can no longer make it; and what the batch means.

    `full` says that no row more would have fitted, `real` is the rows' cost without padding. `predicted_s` is None while
    too little is known.
    """

    batch: tuple[Ticket[T], ...] = ()
    expired: tuple[Ticket[T], ...] = ()
    shape: Shape = NOTHING
    real: int = 0
    predicted_s: float | None = None
    full: bool = False
    charge: Charge | None = None


def next_batch(moment: Moment[T]) -> Decision[T]:
    """Return the next micro-batch out of the pool, which is left as it is. See the module for the rules."""
    expired = tuple(_late(moment))
    gone = {ticket.number for ticket in expired}
    oldest = _oldest(moment, gone)
    if not oldest:
        return Decision(expired=expired)
    shares = _shares(moment, oldest)
    priority = _leading(moment.turns, oldest, shares)
    tenant = moment.turns.next_tenant(priority, oldest[priority])
    batch = Forming(moment, oldest[priority][tenant], gone)
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
    )


def _late(moment: Moment[T]) -> Iterator[Ticket[T]]:
    """Yield what would end after its deadline even in a batch of its own."""
    largest: dict[str, int] = {}
    for (model, _, _), lane in moment.pool.lanes.items():
        largest[model] = max(largest.get(model, 1), lane.by_size[-1][0])
    longest = [
        moment.begins_at(model) + 2 * (moment.costs.seconds(model, Shape(cost, 1, 1)) or 0.0)
        for model, cost in largest.items()
    ]
    for ticket in moment.pool.due(max(longest, default=moment.starts_at)):
        waiting = ticket.waiting
        alone_s = moment.costs.seconds(waiting.model, Shape(waiting.cost, 1, waiting.heads)) or 0.0
        if waiting.deadline_at is not None and waiting.deadline_at <= moment.begins_at(waiting.model) + alone_s:
            yield ticket


def _oldest(moment: Moment[T], gone: set[int]) -> dict[int, dict[str, Ticket[T]]]:
    """Return the item that waited longest by priority and tenant, of the models that are loaded."""
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
    """Return what share each waiting priority below the most urgent one has a right to."""
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
    """Return the priority whose turn it is: the one owed most of those that are owed anything, or the most urgent one."""
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
    """Return the lanes of the leader's model that are less urgent, the more urgent first."""
    less = [key for key in pool.lanes if key[0] == leader.model and key[1] > leader.priority]
    return [pool.lanes[key] for key in sorted(less)]
