"""A Handle to one submitted item, a Job of many. They run those of `async_handles` in the calling thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from producers.client.async_handles import AsyncHandle, AsyncJob, AsyncWatched
from producers.client.group_commit import Promise
from producers.client.pending_results import value
from producers.client.runtimes import iterate, run
from results_store.records import JobStatus, Result

__all__ = ["Handle", "Job", "Watched", "value"]


class Handle:
    """One submitted item. Any number of threads may wait for it."""

    def __init__(self, handle: AsyncHandle) -> None:
        self.job, self.seq, self.tasks = handle.job, handle.seq, handle.tasks
        self.awaited = handle

    def __repr__(self) -> str:
        return repr(self.awaited).removeprefix("Async")

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait and return the output: of the task, or by task name if the submission named a sequence.

        Raises ItemFailed, ItemCancelled or ItemExpired for the first task that did not succeed (`results` has them
        all), ResultTimeout if `timeout_s` passes first (None waits without end), and StoreUnavailable.
        """
        return run(self.awaited.result(timeout_s))

    def results(self) -> list[Result]:
        """Return the rows that are stored by now, in the order of the tasks."""
        return run(self.awaited.results())

    def done(self) -> bool:
        """Say whether every task of the item has its result."""
        return run(self.awaited.done())

    def cancel(self) -> bool:
        """End what has no result yet ``cancelled``, now; return whether there was any.

        The first terminal state wins: an output that comes later is dropped. The computing itself is spared only
        if no worker has begun it and the item travels alone.
        """
        return run(self.awaited.cancel())

    def tell(self, promise: Promise) -> None:
        """Give a future the item's rows, in the order of the tasks: now, or when they are all there."""
        self.awaited.tell(promise)

    def forget(self, promise: Promise) -> None:
        """Take back `tell`."""
        self.awaited.forget(promise)


J = TypeVar("J", bound=AsyncWatched)


class Watched(Generic[J]):
    """`AsyncWatched` for threads."""

    def __init__(self, job: J) -> None:
        self.id, self.found = job.id, job.found
        self.rejected, self.rejected_count = job.rejected, job.rejected_count
        self._job = job

    def __repr__(self) -> str:
        return repr(self._job).removeprefix("Async")

    def progress(self) -> JobStatus:
        """Return how far the job is. Raises UnknownJob."""
        return run(self._job.progress())

    def wait(
        self, timeout_s: float | None = None, *, on_progress: Callable[[JobStatus], object] | None = None
    ) -> JobStatus:
        """Wait until every result is there, calling `on_progress` whenever some are.

        Raises ResultTimeout if `timeout_s` passes first; None waits without end. A store that is away meanwhile is
        asked again until then, or for a minute. After that StoreUnavailable is raised; waiting again is possible.
        """
        return run(self._job.wait(timeout_s, on_progress=on_progress))

    def cancel(self) -> JobStatus:
        """Cancel what is not computed yet: those items end ``cancelled`` when their turn comes."""
        return run(self._job.cancel())


class Job(Watched[AsyncJob]):
    """A submission of many items. `rejected` are those put aside (the first 1,000), `rejected_count` how many."""

    def results(self) -> Iterator[Result]:
        """Yield the results that are stored by now, by item and then task, a page at a time. Raises UnknownJob.

        Wait first to have them all; before that, one that comes in behind the iteration's place is not seen.
        """
        for rows in iterate(self._job.pages()):
            yield from rows

    def as_completed(self) -> Iterator[Result]:
        """Yield each result once, soon after it is stored, until the job is finished. Raises UnknownJob."""
        return iterate(self._job.as_completed())
