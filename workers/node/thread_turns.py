"""The turns of Python's threads: short ones while interactive work is about beside other work."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

#: A thread that wakes waits for its turn of the interpreter while another thread computes: 5 ms by default. An
#: interactive item wakes a thread some thirty times, nearly each time for a statement of the store.
SHORT_S = 0.0005

#: Short turns cost bulk work a tenth of its processor time, so they end this long after the last interactive envelope.
AFTER_S = 1.0


class ThreadTurns:
    """The length of a turn, for all threads of this process.

    Interactive envelopes alone have turns of the usual length: their threads compute for less than that, and each turn
    that ends early costs two switches. A lone item would take a tenth longer.
    """

    def __init__(self) -> None:
        self._usual_s = sys.getswitchinterval()
        self._short_until = 0.0
        self._others = 0  # envelopes that run and are not urgent
        self._lock = threading.Lock()

    @contextmanager
    def taking(self, *, urgent: bool) -> Iterator[None]:
        """Set the length while an envelope runs. An urgent one shortens the turns of the others that run."""
        with self._lock:
            if urgent:
                self._short_until = time.monotonic() + AFTER_S
            self._others += not urgent
            self._set()
        try:
            yield
        finally:
            with self._lock:
                self._others -= not urgent
                self._set()

    def _set(self) -> None:
        length_s = SHORT_S if self._others and time.monotonic() < self._short_until else self._usual_s
        if length_s != sys.getswitchinterval():
            sys.setswitchinterval(length_s)
