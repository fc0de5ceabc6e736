"""The items that other threads give to a loop."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """Items for a single thread. An item that the thread took is kept until `done`, so that no exception loses it.

    Urgent items are taken by themselves and before the others, but never twice in a row while others wait.

    `put` and `close` may be called by any thread, the other methods by the thread alone. There is no item behind
    `close`: its callers see to that.
    """

    def __init__(self) -> None:
        self.closed = False
        self._items: deque[T] = deque()
        self._urgent: deque[T] = deque()
        self._taken_from = self._items
        self._taken: list[T] = []
        self._calls: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._called = False  # a call is in the queue, so that further items need none

    def __len__(self) -> int:
        """The number of items that were not taken yet."""
        return len(self._items) + len(self._urgent)

    def put(self, item: T, *, urgent: bool = False) -> None:
        (self._urgent if urgent else self._items).append(item)
        if not self._called:
            self._called = True
            self._calls.put(None)

    def close(self) -> None:
        """Wake the thread: the items here are the last."""
        self.closed = True
        self._calls.put(None)

    def wait(self, timeout_s: float) -> bool:
        """Wait for an item or for `close`, and return whether there is an item."""
        if not len(self) and not self.closed:
            with suppress(queue.Empty):
                self._calls.get(timeout=timeout_s)
            self._called = False  # before the look at the items: an item that comes later calls again
        return bool(len(self))

    def take(self, limit: int, size: Callable[[T], int] = lambda _: 1) -> list[T]:
        """Take items until their sizes reach the limit. Call `done` when they are dealt with."""
        again = self._taken_from is self._urgent and self._items
        items = self._taken_from = self._urgent if self._urgent and not again else self._items
        taken, total = self._taken, 0
        while items and total < limit:
            item = items[0]
            taken.append(item)  # first: between the two steps an exception may come from outside
            items.popleft()
            total += size(item)
        return taken

    def done(self) -> None:
        """Forget the taken items."""
        self._taken = []

    def failed(self) -> list[T]:
        """Return the taken items, which an exception left undone, and forget them."""
        taken, self._taken = self._taken, []
        if taken and self._taken_from and self._taken_from[0] is taken[-1]:
            self._taken_from.popleft()
        return taken
