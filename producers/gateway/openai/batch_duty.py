"""Looks after open batches as long as the gateway runs. Any number of gateways may do so for the same ones."""

from __future__ import annotations

import asyncio
import logging
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from producers.gateway.openai.batch_job import BatchJob
from producers.wire.errors import ArgosyError
from results_store.errors import StoreError

if TYPE_CHECKING:
    from producers.gateway.gateway import Gateway

log = logging.getLogger(__name__)

#: Batches that one gateway submits or ends at the same time.
AT_ONCE = 8

#: An upload that is not whole by then has broken off.
ABANDONED_S = 24 * 3600.0


class BatchDuty:
    """Takes the steps of open batches, in the gateway's event loop; ``async with`` begins and ends it."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._under_way: dict[str, asyncio.Task[None]] = {}
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
            if (task := self._under_way.get(batch.id)) is not None:
                if work.is_cancelled_early:
                    task.cancel()  # what is not submitted by now is not to be
            elif len(self._under_way) < AT_ONCE and await work.is_due():
                self._under_way[batch.id] = asyncio.create_task(self._advance(work), name=f"argosy {batch.id}")

    async def _advance(self, work: BatchJob) -> None:
        id_ = work.batch.id
        try:
            await work.advance()
            self.wake()  # there is room for another, or its next step
        except (ArgosyError, StoreError) as error:
            log.warning("batch %s: put off until the next look: %s", id_, error)
        except Exception:
            log.exception("batch %s failed by a fault of the gateway's", id_)
            await self._give_up(work)
        finally:
            del self._under_way[id_]

    async def _give_up(self, work: BatchJob) -> None:
        """End the batch: a fault of ours would be there again at every try."""
        error = {"code": "internal_error", "message": "the gateway failed; its log says why", "param": None}
        try:
            await work.fail([error])
        except (ArgosyError, StoreError) as failure:
            log.warning("batch %s: its end cannot be stored: %s", work.batch.id, failure)
