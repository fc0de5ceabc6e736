"""Blocking calls, made for an event loop without blocking it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from producers.errors import ConfigurationError

T = TypeVar("T")

#: Calls that may wait for the database at the same time; awaiting results takes none of them.
THREADS = 4


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
