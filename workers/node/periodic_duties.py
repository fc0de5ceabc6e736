"""The periodic duties of a node, each in its own thread, so that a slow duty never delays a lease."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

from results_store.loops.loop import TICK_S, Loop, doing, note

logger = logging.getLogger(__name__)

#: The most seconds for which a run may wait for the store and the broker, unless it says otherwise.
RUN_LIMIT_S = 120.0


class PeriodicDuties:
    """Runs duties periodically until stopped. A duty that fails is tried again next time; each error is logged once."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._failing: dict[str, str] = {}  # the duties that failed the last time, each with its error
        self.loops: list[Loop] = []

    def start(self, duties: Mapping[str, tuple[float, Callable[[], object]]]) -> None:
        """Start the duties: name → (seconds between runs, function)."""
        for name, (every_s, duty) in duties.items():
            loop = Loop(name, partial(self._turn, name, every_s, duty))
            self.loops.append(loop)
            loop.start()

    def stop(self) -> None:
        """Stop after the current runs."""
        self._stopping.set()
        for loop in self.loops:
            loop.join()

    def _turn(self, name: str, every_s: float, duty: Callable[[], object]) -> bool:
        due_at = time.monotonic() + every_s
        while (left_s := due_at - time.monotonic()) > 0:
            note()
            if self._stopping.wait(min(left_s, TICK_S)):
                return False
        try:
            with doing("its run", RUN_LIMIT_S):
                duty()
        except Exception as error:  # noqa: BLE001 - the broker or the store may be back next time
            told = f"{type(error).__name__}: {error}"
            if told != self._failing.get(name):
                logger.warning("%s: %s; it is tried again every %g s", name, told, every_s)
            self._failing[name] = told
        else:
            if self._failing.pop(name, None) is not None:
                logger.warning("%s: works again", name)
        return True
