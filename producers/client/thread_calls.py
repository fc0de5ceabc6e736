"""Between an event loop and threads: blocking calls made for it without blocking it, and what threads have for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from producers.wire.errors import ConfigurationError

T = TypeVar("T")

#: Calls that may wait for the database at the same time; awaiting results takes none of them.
THREADS = 4

#: What threads have for the loop is delivered so many at a time, and the loop's other work comes in between.
SLICE = 128


class Calls:
    """Makes calls in a few threads of its own, started when needed: the loop's default ones belong to the application."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._closed = False

    async def __call__(self, call: Callable[[], T]) -> T:
        """Return what `call` returns. Cancelled, it only ends the waiting."""
        if self._closed:
            raise ConfigurationError("this client is closed; make a new one")
        if self._executor is None:
            self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="argosy call")
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    def refuse(self) -> None:
        """Make no more calls."""
        self._closed = True

    def close(self) -> None:
        """Wait for the calls under way, and end the threads."""
        self.refuse()
        if self._executor is not None:
            self._executor.shutdown()


class Home:
    """The event loop that an asyncio client belongs to: the one that first used it."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def here(self) -> asyncio.AbstractEventLoop:
        """Return the running loop. Raises ConfigurationError if it is another one than before."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise ConfigurationError(
                "an AsyncClient belongs to the event loop that first used it; make one for each loop"
            )
        return loop

    def deliver(self, calls: Sequence[Callable[[], object]]) -> None:
        """Run calls in the loop; from any thread."""
        if self._loop is None or not calls:
            return
        try:
            self._loop.call_soon_threadsafe(self._run, calls, 0)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            # closed without `close`: nobody waits any more

    def _run(self, calls: Sequence[Callable[[], object]], start: int) -> None:
        for call in calls[start : start + SLICE]:
            call()
        if start + SLICE < len(calls):
            asyncio.get_running_loop().call_soon(self._run, calls, start + SLICE)
