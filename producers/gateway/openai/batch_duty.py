"""Looks after open batches as long as the gateway runs. Any number of gateways may do so for the same ones."""

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

#: Batches of which one gateway takes steps at the same time.
AT_ONCE = 8

#: An upload that is not whole by then has broken off.
ABANDONED_S = 24 * 3600.0


class BatchDuty:
    """Takes the steps of open batches, in the gateway's event loop; ``async with`` begins and ends it."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(AT_ONCE)
        self._called = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="argosy batches")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [*self._under_way.values(), *([] if self._task is None else [self._task])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def wake(self) -> None:
        """Look now: there is a new batch, or a cancelled or finished one."""
        self._called.set()

    async def _run(self) -> None:
        await self._tidy()
        while True:
            self._called.clear()
            try:
                await self._look()
            except (ArgosyError, StoreError) as error:
                log.warning("batches cannot be looked for: %s", error)
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
            log.warning("what is left of broken uploads cannot be removed: %s", error)

    async def _look(self) -> None:
        for batch in await self._gateway.client.ask(lambda store: store.file_batches.unfinished()):
            work = BatchJob(self._gateway, batch)
            if batch.id not in self._under_way:
                self._begin(work)
            elif work.is_cancelled_early:
                self._under_way[batch.id].cancel()  # what is not submitted by now is not to be

    def _begin(self, work: BatchJob) -> None:
        id_ = work.batch.id
        task = self._under_way[id_] = asyncio.create_task(self._advance(work), name=f"argosy {id_}")
        task.add_done_callback(lambda _: self._under_way.pop(id_, None))

    async def _advance(self, work: BatchJob) -> None:
        try:
            async with self._places:
                await work.advance()
        except (ArgosyError, StoreError) as error:
            log.warning("batch %s: put off until the next look: %s", work.batch.id, error)
        except Exception:
            log.exception("batch %s failed by a fault of the gateway's", work.batch.id)
            with suppress(ArgosyError, StoreError):  # at the next look then, where the fault is there again
                await work.fail("internal_error", "the gateway failed; its log says why")
