"""What a submission gives back: a Handle to one item, a Job of many. The asyncio ones are in `async_handles`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from producers.client import notices
from producers.client.group_commit import Promise
from producers.client.pending_results import Pending
from producers.wire.errors import ArgosyError, ItemCancelled, ItemExpired, ItemFailed, ResultTimeout
from results_store.errors import StoreUnavailable
from results_store.records import JobStatus, Result, ResultState

if TYPE_CHECKING:
    from producers.client.fleet_link import Link
    from producers.client.sending.intake import Rejected

#: Who waits for a job puts up with a store that is away for so long: databases are restarted.
OUTAGE_S = 60.0


class ItemHandle:
    """One submitted item: what the handles of both clients have in common."""

    def __init__(self, link: Link, pending: Pending, *, single: bool) -> None:
        self.job = pending.job
        self.seq = pending.seq
        self.tasks = pending.tasks
        self._link = link
        self._pending = pending
        self._single = single

    def __repr__(self) -> str:
        return f"{type(self).__name__}(job={self.job!r}, seq={self.seq}, tasks={self.tasks!r})"

    def tell(self, promise: Promise) -> None:
        """Give a future the item's rows, in the order of the tasks: now, or when they are all there."""
        self._pending.tell(promise)
        if self._link.closing:
            self._pending.fail(notices.closed())

    def forget(self, promise: Promise) -> None:
        """Take back `tell`."""
        self._pending.forget(promise)

    def _output(self, rows: Sequence[Result]) -> Any:
        outputs = [value(row) for row in rows]
        return outputs[0] if self._single else dict(zip(self.tasks, outputs, strict=True))

    def _timeout(self, timeout_s: float | None) -> ResultTimeout:
        return ResultTimeout(
            f"job {self.job}, item {self.seq}: no result within {timeout_s} s; the work goes on: ask again, "
            "or see `argosy doctor` for whether a worker runs"
        )

    def _cancel(self) -> bool:
        """Store `cancelled` for what has no result yet. What an envelope alone holds for it is not computed any more."""
        one = self._pending
        envelopes = [carrier.envelope for carrier in one.carriers]
        committed = self._link.store.commit(
            one.cancelled_rows(),
            done=[carrier.envelope for carrier in one.carriers if carrier.alone and one.durable],
            unlisted=() if one.durable else envelopes,
        )
        self._link.listener.look_up([one])
        return committed.inserted > 0

    def _stored(self) -> list[Result]:
        if self._pending.rows is not None:
            return list(self._pending.rows)
        rows = {row.task: row for row in self._link.store.results_of(self.job, [self.seq])}
        return [rows[task] for task in self.tasks if task in rows]


class Handle(ItemHandle):
    """One submitted item. Any number of threads may wait for it."""

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait and return the output: of the task, or by task name if the submission named a sequence.

        Raises ItemFailed, ItemCancelled or ItemExpired for the first task that did not succeed (`results` has them
        all), and ResultTimeout if `timeout_s` passes first; None waits without end.
        """
        promise: Future[list[Result]] = Future()
        self.tell(promise)
        try:
            return self._output(promise.result(timeout_s))
        except TimeoutError as error:
            if promise.done():  # an error of ours that is a TimeoutError too
                raise
            raise self._timeout(timeout_s) from error
        finally:
            self.forget(promise)

    def results(self) -> list[Result]:
        """Return the rows that are stored by now, in the order of the tasks."""
        return self._stored()

    def done(self) -> bool:
        """Say whether every task of the item has its result."""
        return len(self._stored()) == len(self.tasks)

    def cancel(self) -> bool:
        """End what has no result yet ``cancelled``, now; return whether there was any.

        The first terminal state wins: an output that comes later is dropped. The computing itself is spared only
        if no worker has begun it and the item travels alone.
        """
        return self._cancel()


@dataclass(frozen=True, slots=True)
class Taken:
    """What a call took of its inputs: those put aside (the first 1,000, and how many in all), and how many an earlier run
    with the same idempotency key had submitted."""

    found: int = 0
    rejected: Sequence[Rejected] = ()
    rejected_count: int = 0


class ManyHandle:
    """A submission of many items: what the jobs of both clients have in common.

    `rejected` are the inputs put aside (the first 1,000), `rejected_count` how many in all; `found` are the items that
    an earlier run with the same idempotency key had submitted.
    """

    def __init__(
        self,
        link: Link,
        id: str,  # noqa: A002 - what it is called everywhere else
        *,
        taken: Taken | None = None,
    ) -> None:
        taken = taken or Taken()
        self.id = id
        self.found = taken.found
        self.rejected = tuple(taken.rejected)
        self.rejected_count = taken.rejected_count
        self._link = link

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r})"

    def _unfinished(self, timeout_s: float | None) -> ResultTimeout:
        return ResultTimeout(f"job {self.id}: not finished within {timeout_s} s; the work goes on: wait again")


class Outage:
    """How long the store has been away while somebody waits. Times are of `time.monotonic`."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._until: float | None = None

    def is_over(self) -> bool:
        """Say whether to give up, at a look that failed: OUTAGE_S after the first such, or at the waiter's own deadline."""
        now = time.monotonic()
        if self._until is None:
            self._until = min(now + OUTAGE_S, self._deadline)
        return now >= self._until

    def ended(self) -> None:
        """The store has answered."""
        self._until = None


class Watched(ManyHandle):
    """A submission of many items that can be followed and cancelled."""

    def progress(self) -> JobStatus:
        """Return how far the job is. Raises UnknownJob."""
        return self._link.store.job(self.id)

    def wait(
        self, timeout_s: float | None = None, *, on_progress: Callable[[JobStatus], object] | None = None
    ) -> JobStatus:
        """Wait until every result is there, calling `on_progress` whenever some are.

        Raises ResultTimeout if `timeout_s` passes first; None waits without end. A store that is away meanwhile is asked again
        until then, or for `OUTAGE_S`; after that StoreUnavailable is raised, and one may wait again.
        """
        deadline = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        changed = threading.Event()
        listener = self._link.listener
        listener.follow(self.id, changed.set)
        outage = Outage(deadline)
        try:
            while True:
                changed.clear()
                looked = time.monotonic()
                try:
                    status = self.progress()
                except StoreUnavailable:
                    if outage.is_over():
                        raise
                    changed.wait(notices.FALLBACK_S)
                    continue
                outage.ended()
                if on_progress is not None:
                    on_progress(status)
                if status.finished:
                    return status
                if time.monotonic() >= deadline:
                    raise self._unfinished(timeout_s)
                if changed.wait(max(0.0, min(looked + notices.FALLBACK_S, deadline) - time.monotonic())):
                    time.sleep(max(0.0, min(looked + notices.LOOK_EVERY_S, deadline) - time.monotonic()))
        finally:
            listener.unfollow(self.id, changed.set)

    def cancel(self) -> JobStatus:
        """Cancel what is not computed yet: those items end ``cancelled`` when their turn comes."""
        return self._link.store.cancel_job(self.id, time.time())


class Job(Watched):
    """A submission of many items. `rejected` are those put aside (the first 1,000), `rejected_count` how many in all."""

    def results(self) -> Iterator[Result]:
        """Yield the results that are stored by now, by item and then task, a page at a time. Raises UnknownJob.

        Wait first to have them all; before that, one that comes in behind the iteration's place is not seen.
        """
        from results_store.export.text_export import stream

        return stream(self._link.store, self.id)


def value(row: Result) -> Any:
    """Return a succeeded result's output, a vector as a list of numbers. Raises the error of any other."""
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
