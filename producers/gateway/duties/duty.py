"""A task in the gateway's event loop that looks for work again and again. Any number of gateways may do the same."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from producers.wire.errors import ArgosyError
from results_store.errors import StoreError

log = logging.getLogger(__name__)

#: The most seconds for a look, in which the store may be away, before the gateway says that it is not ready.
LOOK_LIMIT_S = 120.0


class Duty(ABC):
    """Looks for work every `look_s`, and whenever it is woken; ``async with`` starts and stops it.

    `name` says in the plural what it looks for.
    """

    def __init__(self, name: str, look_s: float) -> None:
        self.name = name
        self._look_s = look_s
        self._called = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._turn_at = time.monotonic()

    @abstractmethod
    async def look(self) -> None:
        """Do the work that is due, or begin it."""

    async def begin(self) -> None:  # noqa: B027 - most have nothing to prepare
        """Prepare, before the first look."""

    def under_way(self) -> list[asyncio.Task[None]]:
        """Return the tasks that are cancelled when the gateway stops."""
        return []

    def wake(self) -> None:
        """Look now."""
        self._called.set()

    def problem(self) -> str | None:
        """Return the reason for which nothing advances, if there is one."""
        silent_s = time.monotonic() - self._turn_at
        if silent_s <= self._look_s + LOOK_LIMIT_S:
            return None
        return f"the task that advances {self.name} has made no progress for {silent_s:.0f} s; restart the gateway"

    async def __aenter__(self) -> Self:
        self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        tasks = [*self.under_way(), *([] if self._task is None else [self._task])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self) -> None:
        self._turn_at = time.monotonic()
        self._task = asyncio.create_task(self._run(), name=f"argosy {self.name}")
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Start the task again, unless the gateway stops."""
        if not self._stopping:
            error = None if task.cancelled() else task.exception()
            log.error("the task that advances %s ended and starts again", self.name, exc_info=error)
            self._start()

    async def _run(self) -> None:
        await self.begin()
        said = ""
        while True:
            self._turn_at = time.monotonic()
            self._called.clear()
            try:
                await self.look()
                said = ""
            except (ArgosyError, StoreError) as error:
                if said != (said := str(error)):  # once, not with each look
                    log.warning("the open %s cannot be read: %s", self.name, error)
            except Exception:
                log.exception("the open %s cannot be advanced now; the next look follows", self.name)
            try:
                async with asyncio.timeout(self._look_s):
                    await self._called.wait()
            except TimeoutError:
                pass
