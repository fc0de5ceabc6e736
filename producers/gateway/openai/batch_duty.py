"""Advance open batches while the gateway runs. Any number of gateways may do so for the same batches."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING

from producers.gateway.duties.duty import Duty
from producers.gateway.openai.batch_job import BatchJob
from producers.wire.errors import ArgosyError
from results_store.errors import StoreError

if TYPE_CHECKING:
    from producers.gateway.gateway import Gateway

log = logging.getLogger(__name__)

#: The number of a tenant's batches that a gateway advances at the same time. A batch that waits for a limit of its
#: tenant keeps its place.
OF_A_TENANT = 4

#: An upload that is incomplete after this time was interrupted. A day is longer than gateways' clocks differ.
ABANDONED_S = 24 * 3600.0


class BatchDuty(Duty):
    """Advances open batches. It is woken for a batch that is new, cancelled, or finished."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__("batches", gateway.settings.batch_look_s)
        self._gateway = gateway
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._places: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(OF_A_TENANT))

    def under_way(self) -> list[asyncio.Task[None]]:
        return list(self._under_way.values())

    async def begin(self) -> None:
        before = time.time() - ABANDONED_S
        try:
            await self._gateway.client.ask(lambda store: store.files.remove_unfinished(begun_before=before))
        except (ArgosyError, StoreError) as error:
            log.warning("the remains of interrupted uploads cannot be removed: %s", error)
        except Exception:
            log.exception("the remains of interrupted uploads cannot be removed")

    async def look(self) -> None:
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
            async with self._places[work.batch.tenant]:
                await work.advance()
        except (ArgosyError, StoreError) as error:
            log.warning("batch %s cannot advance now and is tried again later: %s", work.batch.id, error)
        except Exception:
            log.exception("batch %s failed because of an error in the gateway", work.batch.id)
            with suppress(ArgosyError, StoreError):  # otherwise at the next look, where the fault occurs again
                await work.fail("internal_error", "the gateway failed; its log says why")
