"""Group commit: one thread that does together what many callers want, and lets a lone one wait for nobody.

While it does one group, whatever comes gathers for the next. So groups grow with the load by themselves; there is no timer.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from producers.wire.errors import ConfigurationError

T = TypeVar("T")

#: Runs what a thread of ours has for the callers: at once, or on their event loop.
Deliver = Callable[[Sequence[Callable[[], object]]], None]


class Promise(Protocol):
    """What a caller waits on: a future of `concurrent.futures`, or of asyncio."""

    def done(self) -> bool: ...
    def cancel(self) -> bool: ...
    def cancelled(self) -> bool: ...
    def exception(self) -> BaseException | None: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: Any, /) -> None: ...
    def add_done_callback(self, call: Callable[[Any], object], /) -> None: ...


def settle(promise: Promise, outcome: object) -> None:
    """Give `outcome`, a value or an error, to whoever waits, unless they gave up."""
    if promise.done():
        return
    if isinstance(outcome, BaseException):
        promise.set_exception(outcome)
    else:
        promise.set_result(outcome)


class Gathering(Generic[T]):
    """Runs `work` on groups, in the order of `put`, in a thread that the first `put` starts. `work` must not raise."""

    def __init__(self, name: str, work: Callable[[list[T]], None], *, limit: int) -> None:
        self._name = name
        self._work = work
        self._limit = limit
        self._queue: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._entrance = threading.Lock()  # nobody comes in once `close` has put its end mark behind the others

    def put(self, one: T) -> None:
        """Have `one` done with the next group. Raises ConfigurationError after `close`."""
        with self._entrance:
            if self._closed:
                raise ConfigurationError("this client is closed; make a new one")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._queue.put(one)

    def close(self) -> None:
        """Do what still waits, and end the thread."""
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
        """Wait for one and take what waits behind it, up to the limit; nothing at the end mark."""
        one = self._queue.get()
        group: list[T] = []
        while one is not None:
            group.append(one)
            if len(group) == self._limit:
                return group
            try:
                one = self._queue.get_nowait()
            except queue.Empty:
                return group
        if group:
            self._queue.put(None)  # met again after this group
        return group
