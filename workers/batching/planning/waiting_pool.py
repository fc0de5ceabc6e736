"""The waiting items, in the orders that the policy needs, so that forming a batch costs time by its size and not by the
queue's.

A *lane* holds the items of one model, priority and tenant: all of them by arrival, and the oldest `window` of them by
size. Further orders are by content and by deadline. A *block* is many items that wait as one; it has no place by size,
since it is never a companion of others.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

Key: TypeAlias = tuple[str, int, str]  # model, priority, tenant


@dataclass(frozen=True, slots=True)
class Waiting:
    """A waiting item as the policy sees it. `cost` is the cost of its row, `heads` the number of its tasks; times are
    seconds of one clock. Items of equal `content` (and model) share a row; an empty content equals no other.

    A block has `sizes`, the costs of its rows, largest first; its `cost` and `heads` are those of all rows.
    """

    model: str
    priority: int
    cost: int
    arrived_at: float
    deadline_at: float | None = None
    content: bytes = b""
    heads: int = 1
    tenant: str = ""
    sizes: NDArray[np.int64] | None = None

    @property
    def lane(self) -> Key:
        return self.model, self.priority, self.tenant

    @property
    def rows(self) -> int:
        return 1 if self.sizes is None else len(self.sizes)

    @property
    def widest(self) -> int:
        """The cost of its largest row."""
        return self.cost if self.sizes is None else int(self.sizes[0])

    @property
    def row_heads(self) -> int:
        """The number of tasks of each row."""
        return self.heads // self.rows


@dataclass(frozen=True, slots=True, eq=False)
class Ticket(Generic[T]):
    """An item's place in the pool; `number` orders by arrival."""

    number: int
    waiting: Waiting
    item: T


Sized: TypeAlias = tuple[int, int]  # cost, number


class Lane(Generic[T]):
    """The items of one model, priority and tenant."""

    def __init__(self, key: Key, window: int) -> None:
        self.key = key
        self.tickets: OrderedDict[int, Ticket[T]] = OrderedDict()  # by arrival
        self.cost = self.heads = self.rows = 0  # the sums of all items
        self.blocks: dict[int, Ticket[T]] = {}
        self.by_size: list[Sized] = []  # the window's
        self._window = window
        self._later: OrderedDict[int, None] = OrderedDict()  # items beyond the window, by arrival

    @property
    def oldest(self) -> Ticket[T]:
        return next(iter(self.tickets.values()))

    @property
    def widest(self) -> int:
        """The cost of the largest row of the window and of the blocks."""
        largest = [self.by_size[-1][0]] if self.by_size else []
        return max([1, *largest, *(ticket.waiting.widest for ticket in self.blocks.values())])

    def add(self, ticket: Ticket[T], *, first: bool = False) -> None:
        self.tickets[ticket.number] = ticket
        self.cost += ticket.waiting.cost
        self.heads += ticket.waiting.heads
        self.rows += ticket.waiting.rows
        if first:
            self.tickets.move_to_end(ticket.number, last=False)
        if ticket.waiting.sizes is not None:
            self.blocks[ticket.number] = ticket
        elif first or len(self.by_size) < self._window:
            insort(self.by_size, (ticket.waiting.cost, ticket.number))
        else:
            self._later[ticket.number] = None

    def remove(self, ticket: Ticket[T]) -> None:
        del self.tickets[ticket.number]
        self.cost -= ticket.waiting.cost
        self.heads -= ticket.waiting.heads
        self.rows -= ticket.waiting.rows
        if self.blocks.pop(ticket.number, None):
            return
        if ticket.number in self._later:
            del self._later[ticket.number]
            return
        del self.by_size[bisect_left(self.by_size, (ticket.waiting.cost, ticket.number))]
        while self._later and len(self.by_size) < self._window:
            number, _ = self._later.popitem(last=False)
            insort(self.by_size, (self.tickets[number].waiting.cost, number))

    def replace(self, block: Ticket[T], reduced: Ticket[T]) -> None:
        """Put a block with fewer rows in the place of a block."""
        self.tickets[block.number] = self.blocks[block.number] = reduced
        self.cost += reduced.waiting.cost - block.waiting.cost
        self.heads += reduced.waiting.heads - block.waiting.heads
        self.rows += reduced.waiting.rows - block.waiting.rows

    def position_of(self, cost: int) -> int:
        """The place in `by_size` of the first item with at least this cost."""
        return bisect_left(self.by_size, (cost, -math.inf))

    def at(self, position: int) -> Ticket[T]:
        return self.tickets[self.by_size[position][1]]


class Pool(Generic[T]):
    """All items that wait for one device. Not thread-safe."""

    def __init__(self, window: int) -> None:
        self.lanes: dict[Key, Lane[T]] = {}
        self._window = window
        self._last = 0
        self._first = 0
        self._like: dict[tuple[str, bytes], dict[int, Ticket[T]]] = {}
        self._deadlines: list[tuple[float, int, Ticket[T]]] = []  # sorted; no two numbers are alike

    def __len__(self) -> int:
        return sum(len(lane.tickets) for lane in list(self.lanes.values()))

    def __iter__(self) -> Iterator[Ticket[T]]:
        return (ticket for lane in self.lanes.values() for ticket in lane.tickets.values())

    def add(self, waiting: Waiting, item: T) -> None:
        """Add an item behind all others."""
        self._last += 1
        self._insert(Ticket(self._last, waiting, item), first=False)

    def put_back(self, items: Iterable[tuple[Waiting, T]]) -> None:
        """Put items before all others, in their order: they had their turn already."""
        for waiting, item in reversed(list(items)):
            self._first -= 1
            self._insert(Ticket(self._first, waiting, item), first=True)

    def remove(self, tickets: Iterable[Ticket[T]]) -> None:
        for ticket in tickets:
            lane = self.lanes[ticket.waiting.lane]
            lane.remove(ticket)
            if not lane.tickets:
                del self.lanes[lane.key]
            self._forget(ticket)

    def replace(self, ticket: Ticket[T], waiting: Waiting) -> None:
        """Let an item that was reduced wait on in its place."""
        reduced = Ticket(ticket.number, waiting, ticket.item)
        self.lanes[waiting.lane].replace(ticket, reduced)
        self._forget(ticket)
        self._remember(reduced)

    def take(self, chosen: Callable[[T], bool]) -> list[Ticket[T]]:
        """Remove and return the items for which `chosen` is true."""
        taken = [ticket for ticket in self if chosen(ticket.item)]
        self.remove(taken)
        return taken

    def like(self, waiting: Waiting) -> Iterable[Ticket[T]]:
        """Return the waiting items of the same model and content, including this one."""
        return self._like.get((waiting.model, waiting.content), {}).values() if waiting.content else ()

    def due(self, at: float) -> list[Ticket[T]]:
        """Return the items whose deadline is not after `at`."""
        end = bisect_right(self._deadlines, at, key=lambda entry: entry[0])
        return [ticket for _, _, ticket in self._deadlines[:end]]

    def first_deadline_at(self, model: str) -> float | None:
        """Return the first deadline of a model's items."""
        return next((at for at, _, ticket in self._deadlines if ticket.waiting.model == model), None)

    def _insert(self, ticket: Ticket[T], *, first: bool) -> None:
        waiting = ticket.waiting
        lane = self.lanes.get(waiting.lane)
        if lane is None:
            lane = self.lanes[waiting.lane] = Lane(waiting.lane, self._window)
        lane.add(ticket, first=first)
        self._remember(ticket)

    def _remember(self, ticket: Ticket[T]) -> None:
        waiting = ticket.waiting
        if waiting.content:
            self._like.setdefault((waiting.model, waiting.content), {})[ticket.number] = ticket
        if waiting.deadline_at is not None:
            insort(self._deadlines, (waiting.deadline_at, ticket.number, ticket))

    def _forget(self, ticket: Ticket[T]) -> None:
        waiting = ticket.waiting
        if waiting.content:
            same = (waiting.model, waiting.content)
            alike = self._like[same]
            del alike[ticket.number]
            if not alike:
                del self._like[same]
        if waiting.deadline_at is not None:
            del self._deadlines[bisect_left(self._deadlines, (waiting.deadline_at, ticket.number))]
