"""The awaited results of an item: registered before its envelope is published, settled once all rows are there."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from producers.client.group_commit import Promise, settle
from producers.wire.errors import ArgosyError, ItemCancelled, ItemExpired, ItemFailed
from results_store.records import Result, ResultState


@dataclass(frozen=True, slots=True)
class Carrier:
    """An envelope that carries an item for some of its tasks. `alone` is true if it carries no other item."""

    envelope: str
    model: str
    tasks: tuple[str, ...]
    alone: bool


class PendingResult:
    """The awaited rows of an item. Thread-safe; any number of callers may wait."""

    __slots__ = (
        "__weakref__",
        "_lock",
        "_promises",
        "carriers",
        "durable",
        "job",
        "key",
        "rows",
        "seq",
        "since",
        "tasks",
    )

    def __init__(
        self, job: str, seq: int, tasks: Sequence[str], *, key: str | None = None, durable: bool = True
    ) -> None:
        self.job = job
        self.seq = seq
        self.tasks = tuple(tasks)
        self.key = key
        self.durable = durable
        self.carriers: tuple[Carrier, ...] = ()
        self.since = time.monotonic()
        self.rows: list[Result] | None = None
        self._promises: list[Promise] = []
        self._lock = threading.Lock()

    def tell(self, promise: Promise) -> None:
        """Set a promise to the rows, in the order of the tasks: now, or once they are there."""
        with self._lock:
            if self.rows is None:
                self._promises.append(promise)
                return
        settle(promise, self.rows)

    def forget(self, promise: Promise) -> None:
        """Withdraw a promise that was given to `tell`."""
        with self._lock:
            if promise in self._promises:
                self._promises.remove(promise)

    def is_whole(self, rows: Sequence[Result]) -> bool:
        return len({row.task for row in rows} & set(self.tasks)) == len(self.tasks)

    def arrive(self, rows: Sequence[Result]) -> None:
        """Settle all promises with the rows."""
        by_task = {row.task: row for row in rows}
        with self._lock:
            self.rows = [by_task[task] for task in self.tasks]
            promises, self._promises = self._promises, []
        for promise in promises:
            settle(promise, self.rows)

    def fail(self, error: Exception) -> None:
        """Settle the current promises with an error. Later calls of `tell` wait again."""
        with self._lock:
            promises, self._promises = self._promises, []
        for promise in promises:
            settle(promise, error)

    def cancelled_rows(self) -> list[Result]:
        """Return a cancelled row for every task of the item."""
        return [
            Result(
                job=self.job,
                seq=self.seq,
                task=task,
                envelope=carrier.envelope,
                state=ResultState.CANCELLED,
                key=self.key,
                model=carrier.model,
            )
            for carrier in self.carriers
            for task in carrier.tasks
        ]


def value(row: Result) -> Any:
    """Return the output of a succeeded result, a vector as a list of numbers. Raises the result's error otherwise."""
    if row.state is not ResultState.SUCCEEDED:
        raise _error(row)
    if row.vector is None:
        return row.output
    from results_store.sql.columns import unpack_vector

    return list(unpack_vector(row.vector))


def _error(row: Result) -> ArgosyError:
    error = row.error or {}
    if row.state is ResultState.CANCELLED:
        return ItemCancelled(f"{row.task}: item {row.seq} of job {row.job} was cancelled before it was computed")
    if row.state is ResultState.EXPIRED:
        return ItemExpired(f"{row.task}: the deadline of item {row.seq} in job {row.job} passed before it was computed")
    return ItemFailed(row.task, str(error.get("kind", "Error")), str(error.get("message", "no message")))
