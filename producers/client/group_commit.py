"""Group commit: a thread that works for many callers at once, and never makes a lone caller wait.

Items that arrive while a group is processed form the next group. So groups grow with the load, without a timer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import InvalidStateError
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

from producers.wire.errors import ConfigurationError, Overloaded
from results_store.loops.inbox import Inbox
from results_store.loops.loop import TICK_S, Loop

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
    with suppress(InvalidStateError):  # its caller gives up at this moment
        if isinstance(outcome, BaseException):
            promise.set_exception(outcome)
        else:
            promise.set_result(outcome)


class GroupCommit(Generic[T]):
    """Run `work` on groups of items, in the order of `put`, in a thread that the first `put` starts.

    A group has at most `limit` items. `failed` is called with a group whose `work` raised, and with the error.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[list[T]], None],
        *,
        limit: int,
        failed: Callable[[list[T], Exception], object] = lambda _, __: None,
    ) -> None:
        self._work = work
        self._limit = limit
        self._group_failed = failed
        self._inbox: Inbox[T] = Inbox()
        self._loop = Loop(name, self._turn, failed=self._failed)
        self._name = name
        self._entrance = threading.Lock()  # no item may follow the end mark of `close`
        self._lock_type: object = threading.Lock

    def put(self, item: T) -> None:
        """Add an item to the next group. Raises ConfigurationError after `close`, Overloaded if there is no thread."""
        if threading.Lock is not self._lock_type:  # its threads and its callers would wait for each other for ever
            raise ConfigurationError(
                "gevent has patched this process after this client was made; patch it first, or make a new client"
            )
        with self._entrance:
            if self._inbox.closed:
                raise ConfigurationError("this client is closed; make a new client")
            try:
                self._loop.start()
            except RuntimeError as error:
                raise Overloaded(f"this process gets no more threads ({error}); try again") from error
            self._inbox.put(item)

    def close(self) -> None:
        """Process the waiting items, and end the thread."""
        with self._entrance:
            self._inbox.close()
        self._loop.join()

    def _turn(self) -> bool:
        if self._inbox.wait(TICK_S):
            self._work(self._inbox.take(self._limit))
            self._inbox.done()
            return True
        return bool(self._inbox) or not self._inbox.closed

    def _failed(self, error: BaseException) -> None:
        if not isinstance(error, Exception):
            error = RuntimeError(f"the thread {self._name} failed: {error!r}")
        if group := self._inbox.failed():
            self._group_failed(group, error)
