"""The gate before an envelope's computation: envelopes pass together, or a single one alone."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from results_store.loops.loop import doing


class EnvelopeInterrupted(Exception):
    """The worker stops before the envelope is finished; the envelope returns to its queue."""


class Gate:
    """Let envelopes run together, or one of them alone in its worker. Thread-safe.

    An envelope that is to run alone goes first: the running envelopes finish, and new ones wait until it has ended.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._alone = 0  # envelopes that run alone or wait for it
        self._closed = False

    @contextmanager
    def passing(self, *, alone: bool) -> Iterator[None]:
        """Hold the gate while an envelope runs. Raises EnvelopeInterrupted if the gate is closed before its turn."""
        with self._changed:
            self._alone += alone
            with doing("waiting for other envelopes of its worker", math.inf):
                self._changed.wait_for(lambda: self._closed or not (self._inside if alone else self._alone))
            if self._closed:
                self._alone -= alone
                raise EnvelopeInterrupted("this worker stops; the envelope returns to its queue")
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._alone -= alone
                self._changed.notify_all()

    def close(self) -> None:
        """Interrupt the envelopes that wait, and all that come later. Envelopes inside are not affected."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
