"""Group commit: a thread that works for many callers at once, and never makes a lone caller wait.

Items that arrive while a group is processed form the next group. So groups grow with the load, without a timer.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from producers.wire.errors import ConfigurationError

T = TypeVar("T")

#: Runs callbacks of the client's threads for its callers: at once, or on their event loop.
Deliver = Callable[[Sequence[Callable[[], object]]], None]


class Promise(Protocol):
    """The future on which a caller waits: of `concurrent.futures` or of asyncio."""

    def done(self) -> bool: ...
    def cancel(self) -> bool: ...
    def cancelled(self) -> bool: ...
    def exception(self) -> BaseException | None: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: Any, /) -> None: ...
    def add_done_callback(self, call: Callable[[Any], object], /) -> None: ...


def settle(promise: Promise, outcome: object) -> None:
    """Set a promise's outcome, a value or an error, unless its caller gave up."""
    if promise.done():
        return
    if isinstance(outcome, BaseException):
        promise.set_exception(outcome)
    else:
        promise.set_result(outcome)


class GroupCommit(Generic[T]):
    """Run `work` on groups of items, in the order of `put`, in a thread that the first `put` starts.

    `work` must not raise. A group has at most `limit` items.
    """

    def __init__(self, name: str, work: Callable[[list[T]], None], *, limit: int) -> None:
        self._name = name
        self._work = work
        self._limit = limit
        self._queue: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._entrance = threading.Lock()  # no item may follow the end mark of `close`

    def put(self, item: T) -> None:
        """Add an item to the next group. Raises ConfigurationError after `close`."""
        with self._entrance:
            if self._closed:
                raise ConfigurationError("this client is closed; make a new client")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._queue.put(item)

    def close(self) -> None:
        """Process the waiting items, and end the thread."""
        with self._entrance:
            if not self._closed:
                self._queue.put(None)
            self._closed = True
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while group := self._next():
            self._work(group)

    def _next(self) -> list[T]:
        """Wait for an item, and return it with the waiting items behind it, up to the limit; empty at the end mark."""
        item = self._queue.get()
        group: list[T] = []
        while item is not None:
            group.append(item)
            if len(group) == self._limit:
                return group
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return group
        if group:
            self._queue.put(None)  # the end mark is read again after this group
        return group
