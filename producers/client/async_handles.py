"""The handles of the asyncio client: an AsyncHandle to one item, an AsyncJob for many items.

They wait only through their client's runtime. The handles of `producers.client.handles` run them in the calling thread.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from producers.client import notices
from producers.client.fleet_link import FleetLink, OfThisProcess
from producers.client.group_commit import Promise
from producers.client.pending_results import PendingResult, value
from producers.client.request import parse_priority
from producers.client.runtimes import Event, timeout_of
from producers.client.unseen_results import BLOCK, UnseenResults, items_of
from producers.wire.errors import ResultTimeout
from producers.wire.messages import Priority
from results_store.errors import StoreUnavailable
from results_store.records import JobStatus, Result

if TYPE_CHECKING:
    from producers.client.sending.intake import Rejected
    from results_store.sql.auditing.audit_log import Actor

#: A wait for a job tolerates a store that is away for this long: databases are restarted.
OUTAGE_S = 60.0

#: The part of the time that may be spent on looking for new results of a job.
LOOK_SHARE = 0.2

#: The most seconds that a timeout may take longer, to tell what holds the work up.
EXPLAINED_S = 1.0


class AsyncHandle(OfThisProcess):
    """One submitted item. Any number of tasks may await it; ``await handle`` is short for ``await handle.result()``.

    Cancelling a task that awaits the handle only ends the wait. `cancel` ends the item.
    """

    def __init__(self, link: FleetLink, pending: PendingResult, *, single: bool) -> None:
        self.job = pending.job
        self.seq = pending.seq
        self.tasks = pending.tasks
        self._link, self._life = link, link.life
        self._process = link.process
        self._pending = pending
        self._single = single

    def __repr__(self) -> str:
        return f"{type(self).__name__}(job={self.job!r}, seq={self.seq}, tasks={self.tasks!r})"

    def __await__(self) -> Generator[Any, None, Any]:
        return self.result().__await__()

    async def result(self, timeout_s: float | None = None) -> Any:
        """Await and return the output of the task, or the outputs by task name if the submission named a sequence.

        Raises ItemFailed, ItemCancelled or ItemExpired for the first task that did not succeed (`results` returns all
        rows), ResultTimeout if `timeout_s` passes first (None waits without limit), and StoreUnavailable.
        """
        timeout_s = timeout_of(timeout_s)
        promise = self._link.runtime.promise()
        self.tell(promise)
        try:
            rows = await self._link.runtime.outcome(promise, timeout_s)
        except TimeoutError as error:
            held_up = await _held_up(self._link, self.job)
            raise ResultTimeout(
                f"job {self.job}, item {self.seq}: no result within {timeout_s} s; {held_up or 'the work goes on'}. "
                "Ask again, or run `argosy doctor` to see whether a worker runs"
            ) from error
        finally:
            self.forget(promise)
        outputs = [value(row) for row in rows]
        return outputs[0] if self._single else dict(zip(self.tasks, outputs, strict=True))

    async def results(self) -> list[Result]:
        """Return the stored rows, in the order of the tasks."""
        if self._pending.rows is not None:
            return list(self._pending.rows)
        stored = await self._link.ask(lambda store: store.results_of(self.job, [self.seq]))
        rows = {row.task: row for row in stored}
        return [rows[task] for task in self.tasks if task in rows]

    async def done(self) -> bool:
        """Return whether every task of the item has its result."""
        return len(await self.results()) == len(self.tasks)

    async def cancel(self, *, by: Actor | None = None) -> bool:
        """End the item's tasks that have no result as ``cancelled``, now. Return whether there were any.

        The first terminal state wins: a later output is dropped. Computation is avoided only if no worker has begun it
        and the item is alone in its envelope. `by` is the person for whom a server cancels, for the audit log.
        """
        self._refuse_in_child()
        return await self._link.runtime.call(lambda: self._cancel(by))

    def tell(self, promise: Promise) -> None:
        """Set a promise to the item's rows, in the order of the tasks: now, or once all rows are there."""
        self._refuse_in_child()
        self._pending.tell(promise)
        if self._link.closing:
            self._pending.fail(notices.closed())

    def forget(self, promise: Promise) -> None:
        """Withdraw a promise that was given to `tell`."""
        self._pending.forget(promise)

    def _refuse_in_child(self) -> None:
        self._link.refuse_in_child(self._process, "handle", "`results()` reads the stored rows also here")

    def _cancel(self, by: Actor | None) -> bool:
        """Store `cancelled` for tasks without a result. An envelope that holds nothing else is not computed."""
        pending = self._pending
        envelopes = [carrier.envelope for carrier in pending.carriers]
        cancelled = self._link.store.cancel_item(
            pending.cancelled_rows(),
            alone=[carrier.envelope for carrier in pending.carriers if carrier.alone and pending.durable],
            unlisted=() if pending.durable else envelopes,
            by=by,
        )
        self._link.listener.look_up([pending])
        return cancelled > 0


@dataclass(frozen=True, slots=True)
class Taken:
    """The inputs of a call that an earlier run had submitted, and its rejected inputs.

    `found` is the number of items that an earlier run with the same idempotency key submitted. `rejected` holds the
    first 1,000 rejected inputs, and `rejected_count` counts all.
    """

    found: int = 0
    rejected: Sequence[Rejected] = ()
    rejected_count: int = 0


class Outage:
    """Track how long the store has been away during a wait. Times are of `time.monotonic`."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._until: float | None = None

    def is_over(self) -> bool:
        """Return whether to give up after a failed query: after OUTAGE_S, or at the wait's own deadline."""
        now = time.monotonic()
        if self._until is None:
            self._until = min(now + OUTAGE_S, self._deadline)
        return now >= self._until

    def ended(self) -> None:
        """Note that the store has answered."""
        self._until = None


class AsyncWatched(OfThisProcess):
    """A submission of many items that can be followed and cancelled.

    `rejected` holds the first 1,000 rejected inputs, and `rejected_count` counts all. `found` is the number of items
    that an earlier run with the same idempotency key submitted.
    """

    def __init__(
        self,
        link: FleetLink,
        id: str,  # noqa: A002 - the public name
        *,
        taken: Taken | None = None,
    ) -> None:
        taken = taken or Taken()
        self.id = id
        self.found = taken.found
        self.rejected = tuple(taken.rejected)
        self.rejected_count = taken.rejected_count
        self._link, self._life = link, link.life

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r})"

    async def progress(self) -> JobStatus:
        """Return the job's progress. Raises UnknownJob."""
        return await self._link.status(self.id)

    async def wait(
        self, timeout_s: float | None = None, *, on_progress: Callable[[JobStatus], object] | None = None
    ) -> JobStatus:
        """Wait until every result is there, and call `on_progress` whenever results arrive.

        Raises ResultTimeout if `timeout_s` passes first; None waits without limit. If the store is away meanwhile, it
        is asked again until `timeout_s`, or for `OUTAGE_S`. Then StoreUnavailable is raised; you may wait again.
        """
        try:
            return await self._finished(timeout_of(timeout_s), on_progress)
        except ResultTimeout as error:
            if held_up := await _held_up(self._link, self.id):
                raise ResultTimeout(f"{error}: {held_up}") from error
            raise

    async def _finished(self, timeout_s: float | None, on_progress: Callable[[JobStatus], object] | None) -> JobStatus:
        deadline = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        unfinished = ResultTimeout(f"job {self.id}: not finished within {timeout_s} s; the work goes on. Wait again")
        outage = Outage(deadline)
        async with self._link.runtime.limit(deadline, unfinished), self._following() as (changed, listener):
            while True:
                changed.clear()
                started = time.monotonic()
                try:
                    status = await self.progress()
                except StoreUnavailable:
                    if outage.is_over():
                        raise
                    await self._pause(listener, changed, notices.FALLBACK_S, deadline)
                    continue
                outage.ended()
                looked_s = time.monotonic() - started
                if on_progress is not None:
                    on_progress(status)
                if status.finished:
                    return status
                if time.monotonic() >= deadline:
                    raise unfinished
                await self._pause(listener, changed, notices.LOOK_EVERY_S, deadline, looked_s)

    async def cancel(self) -> JobStatus:
        """Cancel the items that are not computed yet. They end as ``cancelled`` when their turn comes."""
        return await self._link.ask(lambda store: store.cancel_job(self.id))

    async def prioritize(self, priority: Priority | str) -> int:
        """Give the job another priority; return the number of its envelopes that move with it.

        Envelopes that workers hold keep theirs. Limits of admission are not asked again. Raises InvalidInput,
        UnknownJob, or TooManyChanges soon after another change.
        """
        chosen = parse_priority(priority)
        return await self._link.ask(lambda store: store.prioritize_job(self.id, int(chosen)))

    async def pages(self) -> AsyncIterator[list[Result]]:
        """Yield the stored results, a page at a time. Raises UnknownJob."""
        await self.progress()
        after: tuple[int, str] | None = None
        while rows := await self._link.ask(lambda store: store.results(self.id, after=after)):  # noqa: B023 - at once
            yield rows
            after = (rows[-1].seq, rows[-1].task)

    @asynccontextmanager
    async def _following(self) -> AsyncIterator[tuple[Event, notices.Listener]]:
        """Yield an event that is set at every notice of the job, and the listener for the notices."""
        runtime, changed = self._link.runtime, self._link.runtime.event()
        listener = await runtime.call(lambda: self._link.listener)
        try:
            await runtime.call(lambda: listener.follow(self.id, changed.set))
            yield changed, listener
        finally:
            listener.unfollow(self.id, changed.set)

    async def _pause(
        self,
        listener: notices.Listener,
        changed: Event,
        pause_s: float,
        deadline: float = float("inf"),
        looked_s: float = 0.0,
    ) -> None:
        """Wait for a notice, or until a look of `looked_s` is due without one, and until `pause_s` have passed."""
        runtime, started = self._link.runtime, time.monotonic()
        quiet_s = max(listener.quiet_s(looked_s), pause_s)
        if await runtime.happened(changed, min(quiet_s, deadline - started)):
            await runtime.sleep(min(started + pause_s, deadline) - time.monotonic())


class AsyncJob(AsyncWatched):
    """A submission of many items. `rejected` has the first 1,000 rejected inputs, `rejected_count` counts all."""

    async def results(self) -> AsyncIterator[Result]:
        """Yield the stored results, by item and then task, a page at a time. Raises UnknownJob.

        To read all results, wait for the job first. Otherwise a result may be stored behind the iteration and is
        missed.
        """
        async for rows in self.pages():
            for row in rows:
                yield row

    async def as_completed(self) -> AsyncIterator[Result]:
        """Yield each result once, soon after it is stored, until the job is finished. Raises UnknownJob."""
        unseen = UnseenResults()
        async with self._following() as (changed, listener):
            while True:
                changed.clear()
                started = time.monotonic()
                status = await self.progress()  # before the results: once it is finished, all results are there
                fresh = await self._fresh(unseen)
                looked_s = time.monotonic() - started
                for row in fresh:
                    yield row
                if status.finished:
                    return
                pause_s = max(notices.LOOK_EVERY_S, looked_s / LOOK_SHARE)
                await self._pause(listener, changed, pause_s, looked_s=looked_s)

    async def _fresh(self, unseen: UnseenResults) -> list[Result]:
        counts = await self._link.ask(lambda store: store.spread(self.id, BLOCK))
        fresh: list[Result] = []
        for block in unseen.blocks(counts):
            seqs = items_of(block)
            rows = await self._link.ask(lambda store: store.results_of(self.id, seqs))  # noqa: B023 - as above
            fresh += unseen.take(block, rows)
        return fresh


async def _held_up(link: FleetLink, job: str) -> str:
    """Return the pauses and retries that a job waits for, as a sentence; empty if the store does not answer soon."""

    def ask() -> str:
        found = [*map(str, link.store.pauses.holding(job))]
        postponed = link.store.retried_work(job)
        return "; ".join([*found, *([str(postponed)] if postponed else [])])

    try:
        return await link.runtime.briefly(("held up", job), ask, EXPLAINED_S)
    except Exception:  # noqa: BLE001 - the caller's time has passed, which is the error to tell
        return ""
