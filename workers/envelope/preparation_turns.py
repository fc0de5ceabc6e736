"""An envelope's turn to compute in the worker's own process: so many at a time, whatever their inputs' origin."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from producers.wire.messages import Input
from workers.envelope.inputs import may_wait


class Turn:
    """One of `turns`, taken by ``with`` and, while a file or a network is waited for, given back to those who could compute.

    Of one thread. Without `turns` it neither waits nor keeps anyone waiting.
    """

    def __init__(self, turns: threading.Semaphore | None = None) -> None:
        self._turns = turns
        self._held = False

    def __enter__(self) -> None:
        if self._turns is not None:
            self._turns.acquire()
            self._held = True

    def __exit__(self, *_: object) -> None:
        if self._turns is not None:
            self._held = False
            self._turns.release()

    @contextmanager
    def given_back(self) -> Iterator[None]:
        """Let others compute meanwhile, and wait for a turn again afterwards, if there is one now."""
        if not self._held:
            yield
            return
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()

    def reading(self, value: Input) -> AbstractContextManager[None]:
        """As `given_back`, for an input that is not at hand; what is, costs no change of turns."""
        return self.given_back() if may_wait(value) else nullcontext()
