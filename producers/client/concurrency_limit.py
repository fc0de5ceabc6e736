"""A limit for tasks that start together, so that a thousand of them leave the event loop room for other work."""

from __future__ import annotations

import asyncio
from collections import deque


class ConcurrencyLimit:
    """Let `width` tasks pass in a round of the loop, and later tasks in the following rounds, in their order."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._passed = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def __call__(self) -> None:
        """Wait for a place. Returns at once if there is room in this round."""
        loop = asyncio.get_running_loop()
        if self._passed == 0:
            loop.call_soon(self._next_round)
        if self._passed < self._width:
            self._passed += 1
            return
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _next_round(self) -> None:
        self._passed = 0
        while self._waiting and self._passed < self._width:
            turn = self._waiting.popleft()
            if not turn.done():  # the waiting task may have been cancelled
                turn.set_result(None)
                self._passed += 1
        if self._passed:
            asyncio.get_running_loop().call_soon(self._next_round)
