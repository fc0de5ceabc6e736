"""The turns of Python's threads: short ones while interactive work is about."""

from __future__ import annotations

import sys
import time

#: A thread that wakes waits for its turn of the interpreter while another thread computes: 5 ms by default. An
#: interactive item wakes a thread some thirty times, nearly each time for a statement of the store.
SHORT_S = 0.0005

#: Short turns cost bulk work a tenth of its processor time, so they end this long after the last interactive envelope.
AFTER_S = 1.0


class ThreadTurns:
    """The length of a turn, for all threads of this process."""

    def __init__(self) -> None:
        self._usual_s = sys.getswitchinterval()
        self._short_until = 0.0
        self._short = False

    def begin(self, *, urgent: bool) -> None:
        """Set the length for an envelope that begins. An urgent one shortens the turns of those that run."""
        now = time.monotonic()
        if urgent:
            self._short_until = now + AFTER_S
        short = now < self._short_until
        if short is not self._short:
            self._short = short
            sys.setswitchinterval(SHORT_S if short else self._usual_s)
