"""A micro-batch under construction: the room left, the cost so far. It follows the rules in `decision`."""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from workers.batching.planning.cost_model import BatchShape, Parts
from workers.batching.planning.policy import Moment
from workers.batching.planning.tenant_turns import Party
from workers.batching.planning.waiting_pool import Lane, Ticket, Waiting

T = TypeVar("T")

#: Batches kept short for more urgent items need not be shorter than the time at which this share of it is fixed.
MOST_FIXED_SHARE = 1 / 3

#: Riders may fill a batch up to the point at which this share of its time is fixed.
RIDERS_FIXED_SHARE = 0.5

#: Blocks of so many predicted seconds share their batches. They end at about the same time, so more would have no
#: result for as long, and fewer pad more.
BLOCKS_S = 0.5

#: A priority's promise bounds less urgent batches for this long after its last item: full batches make bulk fast.
PROMISE_LASTS_S = 30.0


class Forming(Generic[T]):
    """Begins with the leader, whatever its cost. `gone` are the numbers of items that are no longer available.

    If the leader is a block, the batch has the `slices` of the rows of the blocks in `tickets`, and no other items.
    """

    def __init__(self, moment: Moment[T], leader: Ticket[T], gone: set[int]) -> None:
        self.leader = leader.waiting
        self.tickets: list[Ticket[T]] = []
        self._moment = moment
        self._gone = gone
        self._budget = moment.policy.budgets[self.leader.model]
        self._parts = moment.costs.parts(self.leader.model)
        self._limit_s = self._promised_s()
        self._ends_by = float("inf")
        self._contents: set[bytes] = set()
        self._chosen: set[int] = set()
        self.real = self._rows = self._widest = self._heads = 0
        self.slices: list[tuple[int, int]] = []
        self._left_rows = 0
        if self.leader.sizes is None:
            self._put(leader)
        else:
            self._begin_with_block(leader)

    # --- adding items ---

    def _begin_with_block(self, leader: Ticket[T]) -> None:
        """Take the rows next in size to the leader's largest, of all blocks of its lane, as many as fit."""
        widest = self.leader.widest
        blocks = self._blocks_with(leader)
        begins = [int(np.searchsorted(-sizes, -widest)) for _, sizes in blocks]
        offered = np.concatenate([sizes[begin:] for begin, (_, sizes) in zip(begins, blocks, strict=True)])
        owners = np.repeat(
            np.arange(len(blocks)), [len(sizes) - n for n, (_, sizes) in zip(begins, blocks, strict=True)]
        )
        order = np.argsort(-offered, kind="stable")[: self._most_rows(widest)]
        real = np.cumsum(offered[order])
        # the rows come by size, so that the share only falls
        shared = real >= self._moment.policy.least_real_share * widest * np.arange(1, len(real) + 1)
        rows = max(1, int(np.count_nonzero(shared)))
        for own, begin, (ticket, _) in zip(np.bincount(owners[order[:rows]]).tolist(), begins, blocks, strict=False):
            if own:
                self.tickets.append(ticket)
                self.slices.append((begin, begin + own))
                self._heads += own * ticket.waiting.row_heads
        self._rows, self._widest, self.real = rows, widest, int(real[rows - 1])
        self._left_rows = sum(len(sizes) for _, sizes in blocks) - rows

    def _blocks_with(self, leader: Ticket[T]) -> list[tuple[Ticket[T], NDArray[np.int64]]]:
        """Return the leader and the blocks of its lane that came first and are in time, with their sizes."""
        most = self._most_rows(self.leader.widest)
        by = self._moment.starts_at + _seconds(
            self._parts, most * self.leader.widest, most, most * self.leader.row_heads
        )
        found: list[tuple[Ticket[T], NDArray[np.int64]]] = []
        rows, work_s = 0, 0.0
        for ticket in (leader, *self._moment.pool.lanes[self.leader.lane].blocks.values()):
            sizes, deadline_at = ticket.waiting.sizes, ticket.waiting.deadline_at
            if sizes is None or ticket.number in self._gone or (found and ticket is leader):
                continue
            if ticket is leader or deadline_at is None or by < deadline_at:
                found.append((ticket, sizes))
                rows += len(sizes)
                work_s += _seconds(self._parts, ticket.waiting.cost, len(sizes), ticket.waiting.heads)
            if rows >= self._moment.policy.window or work_s >= BLOCKS_S:
                break
        return found

    def _most_rows(self, widest: int) -> int:
        """Return the most rows of this size by budget and time, at least one."""
        most = min(self._budget.rows, self._budget.cost // max(1, widest))
        if self._parts is not None and self._limit_s < float("inf"):
            fixed_s, cost_s, row_s, head_s = self._parts
            each_s = cost_s * widest + row_s + head_s * self.leader.row_heads
            most = min(most, int((self._limit_s - fixed_s) / each_s) if each_s > 0 else most)
        return max(1, most)

    def gather(self, lane: Lane[T]) -> None:
        """Add the items nearest in size to the leader, nearest first, as long as they fit."""
        left = lane.position_of(self.leader.cost) - 1
        right = left + 1
        sizes = lane.by_size
        while left >= 0 or right < len(sizes):
            below = self.leader.cost - sizes[left][0] if left >= 0 else None
            above = sizes[right][0] - self.leader.cost if right < len(sizes) else None
            if above is None or (below is not None and below < above):
                left = left - 1 if self._offer(lane.at(left), self._limit_s) else -1
            else:
                right = right + 1 if self._offer(lane.at(right), self._limit_s) else len(sizes)
            if self._rows >= self._budget.rows:
                return

    def fill(self, lane: Lane[T]) -> None:
        """Add the largest items that widen no row, while the batch's time is mostly fixed."""
        room_s = self._limit_s if self._parts is None else min(self._limit_s, self._parts[0] / RIDERS_FIXED_SHARE)
        place = lane.position_of(self._widest + 1) - 1
        while place >= 0 and self._offer(lane.at(place), room_s):
            place -= 1

    def add_twins(self) -> None:
        """Add the items with the same contents that are in time."""
        for ticket in list(self.tickets):
            for twin in self._moment.pool.like(ticket.waiting):
                if twin.number not in self._chosen and twin.number not in self._gone and self._in_time(twin, 0, 0):
                    self._put(twin)

    def _offer(self, ticket: Ticket[T], limit_s: float) -> bool:
        """Add the item if it fits. False means that no item farther from the leader's size would fit either."""
        waiting = ticket.waiting
        if ticket.number in self._chosen or ticket.number in self._gone or self._has(waiting):
            return True
        rows, widest = self._rows + 1, max(self._widest, waiting.cost)
        if not self._fits(rows, widest, waiting, limit_s):
            return False
        if self._in_time(ticket, rows, widest):
            self._put(ticket)
        return True

    def _fits(self, rows: int, widest: int, waiting: Waiting, limit_s: float) -> bool:
        padded = rows * widest
        if rows > self._budget.rows or padded > self._budget.cost:
            return False
        if self.real + waiting.cost < self._moment.policy.least_real_share * padded:
            return False
        return _seconds(self._parts, padded, rows, self._heads + waiting.heads) <= limit_s

    def _in_time(self, ticket: Ticket[T], rows: int, widest: int) -> bool:
        """Return whether this item and all items of the batch would still meet their deadlines."""
        deadline_at = ticket.waiting.deadline_at
        ends_by = self._ends_by if deadline_at is None else min(self._ends_by, deadline_at)
        if ends_by == float("inf"):
            return True
        padded, rows = (rows * widest, rows) if rows else (self._rows * self._widest, self._rows)
        return (
            self._moment.starts_at + _seconds(self._parts, padded, rows, self._heads + ticket.waiting.heads) < ends_by
        )

    def _put(self, ticket: Ticket[T]) -> None:
        waiting = ticket.waiting
        self.tickets.append(ticket)
        self._chosen.add(ticket.number)
        self._heads += waiting.heads
        if waiting.deadline_at is not None:
            self._ends_by = min(self._ends_by, waiting.deadline_at)
        if self._has(waiting):
            return
        self._contents.add(waiting.content)
        self._rows += 1
        self.real += waiting.cost
        self._widest = max(self._widest, waiting.cost)

    def _has(self, waiting: Waiting) -> bool:
        return bool(waiting.content) and waiting.content in self._contents

    def _promised_s(self) -> float:
        """The longest time that the batch may take, for the sake of more urgent items that were seen lately."""
        moment = self._moment
        promises = [
            wait_s / moment.policy.stages
            for priority, wait_s in moment.policy.promised_wait_s.items()
            if priority < self.leader.priority and moment.now - moment.seen_at.get(priority, -1e18) <= PROMISE_LASTS_S
        ]
        if not promises or self._parts is None:
            return float("inf")
        return max(min(promises), self._parts[0] / MOST_FIXED_SHARE)

    # --- the result ---

    @property
    def shape(self) -> BatchShape:
        return BatchShape(self._rows * self._widest, self._rows, self._heads)

    @property
    def predicted_s(self) -> float | None:
        if self._parts is None:
            return None
        return _seconds(self._parts, self._rows * self._widest, self._rows, self._heads)

    @property
    def full(self) -> bool:
        """Whether no further row like the largest would fit, or other rows of its blocks wait on."""
        if self._left_rows:
            return True
        rows = self._rows + 1
        padded = rows * self._widest
        over = rows > self._budget.rows or padded > self._budget.cost
        return over or _seconds(self._parts, padded, rows, self._heads + 1) > self._limit_s

    def parts(self) -> dict[Party, float]:
        """The share of each priority and tenant in the batch, by the items' costs."""
        costs: dict[Party, int] = {}
        for ticket in self.tickets:
            party = (ticket.waiting.priority, ticket.waiting.tenant)
            costs[party] = costs.get(party, 0) + max(ticket.waiting.cost, 1)
        total = sum(costs.values())
        return {party: cost / total for party, cost in costs.items()}


def _seconds(parts: Parts | None, padded: int, rows: int, heads: int) -> float:
    """Predict a batch's seconds; 0 while too little is known."""
    return 0.0 if parts is None else parts[0] + parts[1] * padded + parts[2] * rows + parts[3] * heads
