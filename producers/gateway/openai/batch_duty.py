"""Advance open batches while the gateway runs. Any number of gateways may do so for the same batches."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from producers.gateway.openai.batch_job import BatchJob
from producers.wire.errors import ArgosyError
from results_store.errors import StoreError

if TYPE_CHECKING:
    from producers.gateway.gateway import Gateway

log = logging.getLogger(__name__)

#: The number of batches that a gateway advances at the same time.
AT_ONCE = 8

#: The most seconds for a look, in which the store may be away, before the gateway says that it is not ready.
LOOK_LIMIT_S = 120.0

#: An upload that is incomplete after this time was interrupted. A day is longer than gateways' clocks differ.
ABANDONED_S = 24 * 3600.0


class BatchDuty:
    """Advance open batches, in the gateway's event loop; ``async with`` starts and stops it."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(AT_ONCE)
        self._called = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._turn_at = time.monotonic()

    async def __aenter__(self) -> Self:
        self._start()
        return self

    def _start(self) -> None:
        self._turn_at = time.monotonic()
        self._task = asyncio.create_task(self._run(), name="argosy batches")
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Start the task again, unless the gateway stops."""
        if not self._stopping:
            log.error("the task that advances batches ended and starts again", exc_info=_error_of(task))
            self._start()

    def problem(self) -> str | None:
        """Return the reason for which open batches do not advance, if there is one."""
        silent_s = time.monotonic() - self._turn_at
        if silent_s <= self._gateway.settings.batch_look_s + LOOK_LIMIT_S:
            return None
        return f"the task that advances batches has made no progress for {silent_s:.0f} s; restart the gateway"

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        tasks = [*self._under_way.values(), *([] if self._task is None else [self._task])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def wake(self) -> None:
        """Look at the batches now: a batch is new, cancelled, or finished."""
        self._called.set()

    async def _run(self) -> None:
        await self._tidy()
        said = ""
        while True:
            self._turn_at = time.monotonic()
            self._called.clear()
            try:
                await self._look()
                said = ""
            except (ArgosyError, StoreError) as error:
                if said != (said := str(error)):  # once, not with each look
                    log.warning("the open batches cannot be read: %s", error)
            except Exception:
                log.exception("the open batches cannot be advanced now; the next look follows")
            try:
                async with asyncio.timeout(self._gateway.settings.batch_look_s):
                    await self._called.wait()
            except TimeoutError:
                pass

    async def _tidy(self) -> None:
        before = time.time() - ABANDONED_S
        try:
            await self._gateway.client.ask(lambda store: store.files.remove_unfinished(begun_before=before))
        except (ArgosyError, StoreError) as error:
            log.warning("the remains of interrupted uploads cannot be removed: %s", error)
        except Exception:
            log.exception("the remains of interrupted uploads cannot be removed")

    async def _look(self) -> None:
        await self._gateway.client.ask(lambda store: store.file_batches.adopt(now=time.time()))
        for batch in await self._gateway.client.ask(lambda store: store.file_batches.unfinished()):
            work = BatchJob(self._gateway, batch)
            if batch.id not in self._under_way:
                self._begin(work)
            elif work.is_cancelled_early:
                # the unsubmitted items of a cancelled batch are not submitted any more
                self._under_way[batch.id].cancel()

    def _begin(self, work: BatchJob) -> None:
        id_ = work.batch.id
        task = self._under_way[id_] = asyncio.create_task(self._advance(work), name=f"argosy {id_}")
        task.add_done_callback(lambda _: self._under_way.pop(id_, None))

    async def _advance(self, work: BatchJob) -> None:
        try:
            async with self._places:
                await work.advance()
        except (ArgosyError, StoreError) as error:
            log.warning("batch %s cannot advance now and is tried again later: %s", work.batch.id, error)
        except Exception:
            log.exception("batch %s failed because of an error in the gateway", work.batch.id)
            with suppress(ArgosyError, StoreError):  # otherwise at the next look, where the fault occurs again
                await work.fail("internal_error", "the gateway failed; its log says why")


def _error_of(task: asyncio.Task[None]) -> BaseException | None:
    return None if task.cancelled() else task.exception()
