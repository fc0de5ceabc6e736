"""What a submission gives back: a Handle to one item, a Job of many. Both read the store, woken by done notices."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from producers.errors import ArgosyError, ItemCancelled, ItemExpired, ItemFailed, ResultTimeout
from producers.notices import Listener
from results_store.records import JobStatus, Result, ResultState

if TYPE_CHECKING:
    from producers.packing import Rejected
    from results_store.store import Store


class Handle:
    """One submitted item. Any number of threads may wait for it."""

    def __init__(
        self,
        store: Store,
        listener: Listener,
        *,
        job: str,
        seq: int,
        envelopes: Sequence[str],
        tasks: Sequence[str],
        single: bool,
    ) -> None:
        self.job = job
        self.seq = seq
        self.tasks = tuple(tasks)
        self._store = store
        self._listener = listener
        self._envelopes = tuple(envelopes)
        self._single = single

    def __repr__(self) -> str:
        return f"Handle(job={self.job!r}, seq={self.seq}, tasks={self.tasks!r})"

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait and return the output: of the task, or by task name if the submission named a sequence.

        Raises ItemFailed, ItemCancelled or ItemExpired for the first task that did not succeed (`results` has them
        all), and ResultTimeout if `timeout_s` passes first; None waits without end.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        rows = self._listener.wait(self._envelopes, self._complete, deadline)
        if rows is None:
            raise ResultTimeout(
                f"job {self.job}, item {self.seq}: no result within {timeout_s} s; the work goes on: ask again, "
                "or see `argosy doctor` for whether a worker runs"
            )
        outputs = {row.task: value(row) for row in rows}
        return outputs[self.tasks[0]] if self._single else {task: outputs[task] for task in self.tasks}

    def results(self) -> list[Result]:
        """Return the rows that are stored by now, in the order of the tasks."""
        rows = {row.task: row for row in self._store.results_of(self.job, [self.seq])}
        return [rows[task] for task in self.tasks if task in rows]

    def done(self) -> bool:
        """Say whether every task of the item has its result."""
        return self._complete() is not None

    def _complete(self) -> list[Result] | None:
        rows = self.results()
        return rows if len(rows) == len(self.tasks) else None


class Job:
    """A submission of many items. `rejected` are those put aside (the first 1,000), `rejected_count` how many in all."""

    def __init__(
        self,
        store: Store,
        listen: Callable[[str], Listener],
        id: str,  # noqa: A002 - what it is called everywhere else
        *,
        rejected: Sequence[Rejected] = (),
        rejected_count: int = 0,
    ) -> None:
        self.id = id
        self.rejected = tuple(rejected)
        self.rejected_count = rejected_count
        self._store = store
        self._listen = listen

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    def progress(self) -> JobStatus:
        """Return how far the job is. Raises UnknownJob."""
        return self._store.job(self.id)

    def wait(
        self, timeout_s: float | None = None, *, on_progress: Callable[[JobStatus], object] | None = None
    ) -> JobStatus:
        """Wait until every result is there, calling `on_progress` whenever some are.

        Raises ResultTimeout if `timeout_s` passes first; None waits without end.
        """

        def finished() -> JobStatus | None:
            status = self.progress()
            if on_progress is not None:
                on_progress(status)
            return status if status.finished else None

        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._listen(self.id) as listener:
            status = listener.wait((), finished, deadline)
        if status is None:
            raise ResultTimeout(f"job {self.id}: not finished within {timeout_s} s; the work goes on: wait again")
        return status

    def results(self) -> Iterator[Result]:
        """Yield the results that are stored by now, by item and then task, a page at a time. Raises UnknownJob.

        Wait first to have them all; before that, one that comes in behind the iteration's place is not seen.
        """
        from results_store.export import stream

        return stream(self._store, self.id)

    def cancel(self) -> JobStatus:
        """Cancel what is not computed yet: those items end ``cancelled`` when their turn comes."""
        return self._store.cancel_job(self.id, time.time())


def value(row: Result) -> Any:
    """Return a succeeded result's output, a vector as a list of numbers. Raises the error of any other."""
    if row.state is not ResultState.SUCCEEDED:
        raise _error(row)
    if row.vector is None:
        return row.output
    from results_store.columns import unpack_vector

    return list(unpack_vector(row.vector))


def _error(row: Result) -> ArgosyError:
    error = row.error or {}
    if row.state is ResultState.CANCELLED:
        return ItemCancelled(f"{row.task}: job {row.job} was cancelled before item {row.seq} was computed")
    if row.state is ResultState.EXPIRED:
        return ItemExpired(f"{row.task}: the deadline of item {row.seq} in job {row.job} passed before it was computed")
    return ItemFailed(row.task, str(error.get("kind", "Error")), str(error.get("message", "no message")))
