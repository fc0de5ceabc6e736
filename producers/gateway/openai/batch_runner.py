"""Works on batches of requests as long as the gateway runs; what it leaves unfinished, it or another takes up again."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from producers.gateway.openai.batch_work import Lost, Work
from producers.wire.errors import ArgosyError
from producers.wire.messages import new_id
from results_store.errors import StoreError
from results_store.gateway.gateway_batches import FileBatch

if TYPE_CHECKING:
    from producers.gateway.gateway import Gateway

log = logging.getLogger(__name__)

#: Batches worked on at the same time by one gateway: the fleet computes, this only reads and writes files.
AT_ONCE = 8

#: How often the store is asked for batches without being told of one: those of a gateway that died, and cancelled ones.
LOOK_EVERY_S = 5.0

#: An upload that is not whole by then has broken off.
ABANDONED_S = 24 * 3600.0


class Runner:
    """One gateway's work on batches, in its event loop; ``async with`` begins and ends it."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._name = f"{socket.gethostname()}:{os.getpid()}:{new_id()}"
        self._works: dict[str, tuple[Work, asyncio.Task[None]]] = {}
        self._called = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="argosy batches")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [task for _, task in self._works.values()]
        if self._task is not None:
            tasks.append(self._task)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def wake(self) -> None:
        """Look now: there is a new batch, or a cancelled one."""
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
                async with asyncio.timeout(min(LOOK_EVERY_S, self._gateway.settings.batch_lease_s / 3)):
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
        """Keep what is worked on, hear what was cancelled, take what waits."""
        until = time.time() + self._gateway.settings.batch_lease_s
        for id_, (work, task) in list(self._works.items()):
            batch = await self._gateway.client.ask(
                lambda store: store.file_batches.renew(id_, self._name, leased_until=until)  # noqa: B023 - run at once
            )
            if batch is None:
                task.cancel()  # another has it: this one was away for longer than the lease
            elif batch.cancelled_at is not None:
                work.cancelled.set()
        room = AT_ONCE - len(self._works)
        if room <= 0:
            return
        taken = await self._gateway.client.ask(
            lambda store: store.file_batches.take(self._name, now=time.time(), leased_until=until, limit=room)
        )
        for batch in taken:
            self._begin(batch)

    def _begin(self, batch: FileBatch) -> None:
        work = Work(self._gateway, batch, self._name)
        if batch.cancelled_at is not None:
            work.cancelled.set()
        task = asyncio.create_task(self._work(work), name=f"argosy batch {batch.id}")
        self._works[batch.id] = work, task

    async def _work(self, work: Work) -> None:
        id_ = work.batch.id
        try:
            await work.run()
        except Lost:
            log.warning("batch %s: another gateway works on it now", id_)
        except (ArgosyError, StoreError) as error:
            log.warning("batch %s: put off for %s s: %s", id_, self._gateway.settings.batch_lease_s, error)
        except asyncio.CancelledError:
            await self._release(id_)
            raise
        except Exception:
            log.exception("batch %s failed by a fault of the gateway's", id_)
            await self._give_up(work)
        finally:
            del self._works[id_]
            self.wake()

    async def _give_up(self, work: Work) -> None:
        """A fault of ours would be there again at every try: the batch ends, and says so."""
        try:
            await work.failed("internal_error", "the gateway failed; its log says why")
        except (Lost, ArgosyError, StoreError) as error:
            log.warning("batch %s: its end cannot be stored: %s", work.batch.id, error)

    async def _release(self, id_: str) -> None:
        """The gateway stops: the next one may go on at once. If the store is away, the lease runs out."""
        try:
            await self._gateway.client.ask(lambda store: store.file_batches.renew(id_, self._name, leased_until=None))
        except (ArgosyError, StoreError) as error:
            log.warning("batch %s: its lease runs out by itself: %s", id_, error)
