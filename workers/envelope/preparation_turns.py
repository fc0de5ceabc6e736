"""A thread's turn to compute in the worker's own process. Their number is limited, whatever the inputs' origin."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from producers.wire.messages import Input
from results_store.loops.loop import doing, note
from workers.envelope.inputs import may_wait

#: The most seconds to prepare a portion of the items, or to finish the outputs of an envelope. An envelope that takes
#: longer ends its worker, like an envelope that crashes it.
STEP_LIMIT_S = 120.0


class PreparationTurn:
    """A turn out of `turns`, taken by ``with`` and given back during waits for a file, a network or a decoding process.

    Used by one thread. Without `turns` it has no effect.
    """

    def __init__(self, turns: threading.Semaphore | None = None) -> None:
        self._turns = turns
        self._held = False

    def __enter__(self) -> None:
        if self._turns is not None:
            if not self._turns.acquire(blocking=False):
                with doing("waiting for others to prepare", math.inf):
                    self._turns.acquire()
            self._held = True

    def __exit__(self, *_: object) -> None:
        if self._turns is not None:
            self._held = False
            self._turns.release()

    @contextmanager
    def given_back(self) -> Iterator[None]:
        """Let others compute meanwhile, and take a turn again afterwards, if a turn is held now."""
        if not self._held:
            yield
            return
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()

    def reading(self, value: Input) -> AbstractContextManager[None]:
        """Give the turn back, like `given_back`, if reading the input may wait. An inline input keeps its turn."""
        return self.given_back() if may_wait(value) else nullcontext()

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Give the turn back, like `given_back`, while files are decoded in other processes, which have limits."""
        note("decoding", math.inf)
        with self.given_back():
            yield
        note("preparing items", STEP_LIMIT_S)

    def another(self) -> PreparationTurn:
        """Return a turn for another thread of the same envelope."""
        return PreparationTurn(self._turns)
