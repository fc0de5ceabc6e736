"""The handles of the client for threads: a Handle to one item, a Job for many items.

They run the handles of `async_handles` in the calling thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from producers.client.async_handles import AsyncHandle, AsyncJob, AsyncWatched
from producers.client.fleet_link import OfThisProcess
from producers.client.group_commit import Promise
from producers.client.pending_results import value
from producers.client.runtimes import iterate, run
from producers.wire.messages import Priority
from results_store.records import JobStatus, Result

if TYPE_CHECKING:
    from results_store.sql.auditing.audit_log import Actor

__all__ = ["Handle", "Job", "Watched", "value"]


class Handle(OfThisProcess):
    """One submitted item. Any number of threads may wait for it."""

    def __init__(self, handle: AsyncHandle) -> None:
        self.job, self.seq, self.tasks = handle.job, handle.seq, handle.tasks
        self.awaited = handle

    def __repr__(self) -> str:
        return repr(self.awaited).removeprefix("Async")

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait for and return the output of the task, or the outputs by task name if the submission named a sequence.

        Raises ItemFailed, ItemCancelled or ItemExpired for the first task that did not succeed (`results` returns all
        rows), ResultTimeout if `timeout_s` passes first (None waits without limit), and StoreUnavailable.
        """
        return run(self.awaited.result(timeout_s))

    def results(self) -> list[Result]:
        """Return the stored rows, in the order of the tasks."""
        return run(self.awaited.results())

    def done(self) -> bool:
        """Return whether every task of the item has its result."""
        return run(self.awaited.done())

    def cancel(self, *, by: Actor | None = None) -> bool:
        """End the item's tasks that have no result as ``cancelled``, now. Return whether there were any.

        The first terminal state wins: a later output is dropped. Computation is avoided only if no worker has begun it
        and the item is alone in its envelope. `by` is the person for whom a server cancels, for the audit log.
        """
        return run(self.awaited.cancel(by=by))

    def tell(self, promise: Promise) -> None:
        """Set a promise to the item's rows, in the order of the tasks: now, or once all rows are there."""
        self.awaited.tell(promise)

    def forget(self, promise: Promise) -> None:
        """Withdraw a promise that was given to `tell`."""
        self.awaited.forget(promise)


J = TypeVar("J", bound=AsyncWatched)


class Watched(OfThisProcess, Generic[J]):
    """`AsyncWatched` for threads."""

    def __init__(self, job: J) -> None:
        self.id, self.found = job.id, job.found
        self.rejected, self.rejected_count = job.rejected, job.rejected_count
        self._job = job

    def __repr__(self) -> str:
        return repr(self._job).removeprefix("Async")

    def progress(self) -> JobStatus:
        """Return the job's progress. Raises UnknownJob."""
        return run(self._job.progress())

    def wait(
        self, timeout_s: float | None = None, *, on_progress: Callable[[JobStatus], object] | None = None
    ) -> JobStatus:
        """Wait until every result is there, and call `on_progress` whenever results arrive.

        Raises ResultTimeout if `timeout_s` passes first; None waits without limit. If the store is away meanwhile, it
        is asked again until `timeout_s`, or for a minute. Then StoreUnavailable is raised; you may wait again.
        """
        return run(self._job.wait(timeout_s, on_progress=on_progress))

    def cancel(self) -> JobStatus:
        """Cancel the items that are not computed yet. They end as ``cancelled`` when their turn comes."""
        return run(self._job.cancel())

    def prioritize(self, priority: Priority | str) -> int:
        """Give the job another priority; return the number of its envelopes that move with it.

        Envelopes that workers hold keep theirs. Limits of admission are not asked again. Raises InvalidInput,
        UnknownJob, or TooManyChanges soon after another change.
        """
        return run(self._job.prioritize(priority))


class Job(Watched[AsyncJob]):
    """A submission of many items. `rejected` has the first 1,000 rejected inputs, `rejected_count` counts all."""

    def results(self) -> Iterator[Result]:
        """Yield the stored results, by item and then task, a page at a time. Raises UnknownJob.

        To read all results, wait for the job first. Otherwise a result may be stored behind the iteration and is
        missed.
        """
        for rows in iterate(self._job.pages()):
            yield from rows

    def as_completed(self) -> Iterator[Result]:
        """Yield each result once, soon after it is stored, until the job is finished. Raises UnknownJob."""
        return iterate(self._job.as_completed())
