"""What a submission by the asyncio client gives back: an AsyncHandle to one item, an AsyncJob of many."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from producers.client import notices
from producers.client.handles import ItemHandle, ManyHandle, Outage, Taken
from producers.client.pending_results import Pending
from producers.client.unseen_results import BLOCK, Unseen, items_of
from results_store.errors import StoreUnavailable
from results_store.records import JobStatus, Result

if TYPE_CHECKING:
    from producers.client.fleet_link import Link
    from producers.client.thread_calls import Calls

#: Looking for what has come of a job may take this part of the time.
LOOK_SHARE = 0.2


class AsyncHandle(ItemHandle):
    """One submitted item. Any number of tasks may await it; ``await handle`` is ``await handle.result()``.

    Cancelling a task that awaits it only ends the waiting; `cancel` ends the item.
    """

    def __init__(self, link: Link, calls: Calls, pending: Pending, *, single: bool) -> None:
        super().__init__(link, pending, single=single)
        self._calls = calls

    def __await__(self) -> Generator[Any, None, Any]:
        return self.result().__await__()

    async def result(self, timeout_s: float | None = None) -> Any:
        """Await and return the output: of the task, or by task name if the submission named a sequence.

        Raises ItemFailed, ItemCancelled or ItemExpired for the first task that did not succeed (`results` has them
        all), ResultTimeout if `timeout_s` passes first (None waits without end), and StoreUnavailable.
        """
        promise: asyncio.Future[list[Result]] = asyncio.get_running_loop().create_future()
        self.tell(promise)
        try:
            async with asyncio.timeout(timeout_s):
                rows = await promise
        except TimeoutError as error:
            raise self._timeout(timeout_s) from error
        finally:
            self.forget(promise)
        return self._output(rows)

    async def results(self) -> list[Result]:
        """Return the rows that are stored by now, in the order of the tasks."""
        return await self._calls(self._stored)

    async def done(self) -> bool:
        """Say whether every task of the item has its result."""
        return len(await self.results()) == len(self.tasks)

    async def cancel(self) -> bool:
        """End what has no result yet ``cancelled``, now; return whether there was any.

        The first terminal state wins: an output that comes later is dropped. The computing itself is spared only
        if no worker has begun it and the item travels alone.
        """
        return await self._calls(self._cancel)


class AsyncWatched(ManyHandle):
    """A submission of many items that can be followed and cancelled."""

    def __init__(
        self,
        link: Link,
        calls: Calls,
        id: str,  # noqa: A002 - what it is called everywhere else
        *,
        taken: Taken | None = None,
    ) -> None:
        super().__init__(link, id, taken=taken)
        self._calls = calls

    async def progress(self) -> JobStatus:
        """Return how far the job is. Raises UnknownJob."""
        return await self._calls(lambda: self._link.store.job(self.id))

    async def wait(
        self, timeout_s: float | None = None, *, on_progress: Callable[[JobStatus], object] | None = None
    ) -> JobStatus:
        """Wait until every result is there, calling `on_progress` whenever some are.

        Raises ResultTimeout if `timeout_s` passes first; None waits without end. A store that is away meanwhile is asked again
        until then, or for `OUTAGE_S`; after that StoreUnavailable is raised, and one may wait again.
        """
        outage = Outage(deadline=float("inf"))
        try:
            async with asyncio.timeout(timeout_s), self._following() as changed:
                while True:
                    changed.clear()
                    try:
                        status = await self.progress()
                    except StoreUnavailable:
                        if outage.is_over():
                            raise
                        await asyncio.sleep(notices.FALLBACK_S)
                        continue
                    outage.ended()
                    if on_progress is not None:
                        on_progress(status)
                    if status.finished:
                        return status
                    await _pause(changed, notices.LOOK_EVERY_S)
        except TimeoutError as error:
            raise self._unfinished(timeout_s) from error

    async def cancel(self) -> JobStatus:
        """Cancel what is not computed yet: those items end ``cancelled`` when their turn comes."""
        return await self._calls(lambda: self._link.store.cancel_job(self.id, time.time()))

    async def _rows(self) -> AsyncIterator[list[Result]]:
        """Yield the results that are stored by now, a page at a time."""
        after: tuple[int, str] | None = None
        while rows := await self._calls(lambda: self._link.store.results(self.id, after=after)):  # noqa: B023 - run at once
            yield rows
            after = (rows[-1].seq, rows[-1].task)

    @asynccontextmanager
    async def _following(self) -> AsyncIterator[asyncio.Event]:
        """An event that is set at every notice of the job."""
        changed = asyncio.Event()
        listener = await self._calls(lambda: self._link.listener)
        try:
            await self._calls(lambda: listener.follow(self.id, changed.set))
            yield changed
        finally:
            listener.unfollow(self.id, changed.set)


class AsyncJob(AsyncWatched):
    """A submission of many items. `rejected` are those put aside (the first 1,000), `rejected_count` how many in all."""

    async def results(self) -> AsyncIterator[Result]:
        """Yield the results that are stored by now, by item and then task, a page at a time. Raises UnknownJob.

        Wait first to have them all; before that, one that comes in behind the iteration's place is not seen.
        """
        await self.progress()
        async for rows in self._rows():
            for row in rows:
                yield row

    async def as_completed(self) -> AsyncIterator[Result]:
        """Yield each result once, soon after it is stored, until the job is finished. Raises UnknownJob."""
        unseen = Unseen()
        async with self._following() as changed:
            while True:
                changed.clear()
                started = time.monotonic()
                status = await self.progress()  # looked at first: what is finished is all there to be read
                fresh = await self._fresh(unseen)
                looked_s = time.monotonic() - started
                for row in fresh:
                    yield row
                if status.finished:
                    return
                await _pause(changed, max(notices.LOOK_EVERY_S, looked_s / LOOK_SHARE))

    async def _fresh(self, unseen: Unseen) -> list[Result]:
        counts = await self._calls(lambda: self._link.store.spread(self.id, BLOCK))
        fresh: list[Result] = []
        for block in unseen.blocks(counts):
            rows = await self._calls(lambda: self._link.store.results_of(self.id, items_of(block)))  # noqa: B023 - as above
            fresh += unseen.take(block, rows)
        return fresh


async def _pause(changed: asyncio.Event, pause_s: float) -> None:
    """Wait for a notice, for FALLBACK_S at most, and then so long that the next look is no sooner than `pause_s`."""
    started = time.monotonic()
    try:
        async with asyncio.timeout(max(notices.FALLBACK_S, pause_s)):
            await changed.wait()
    except TimeoutError:
        return
    await asyncio.sleep(max(0.0, started + pause_s - time.monotonic()))
