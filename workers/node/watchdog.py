"""The watchdog of a worker: it ends the process if a thread on which others wait makes no progress.

Leases are renewed by a thread of their own, which proves nothing about the others. A worker whose batcher, writer or
consumer is stuck would hold its envelopes for ever. The watchdog looks at the turns of all these threads.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from results_store.loops.loop import Loop, ThreadProgress

logger = logging.getLogger(__name__)

#: Seconds between looks.
LOOK_EVERY_S = 1.0

#: The bounds of the time without a turn after which a thread counts as stuck; between them it is half of `lease_s`.
LEAST_LIMIT_S, MOST_LIMIT_S = 10.0, 30.0

#: The most seconds that the last steps of a process may take; the store or the broker may be the cause of its end.
LAST_STEPS_S = 10

#: The exit code of a process that its watchdog ended (EX_SOFTWARE).
EXIT_CODE = 70


def limit_for(lease_s: float) -> float:
    """Return the seconds without a turn after which a thread counts as stuck."""
    return min(MOST_LIMIT_S, max(LEAST_LIMIT_S, lease_s / 2))


class ProgressWatch:
    """Find the threads that have ended or make no progress. `look` belongs to a single thread.

    Only the time in which looks take place counts: a gap between two looks counts as two intervals at most. So a
    process that was stopped and continued, or got no processor time, gives its threads the time for a turn.
    """

    def __init__(self, limit_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s = limit_s
        self._clock = clock
        self._died: dict[ThreadProgress, Callable[[], bool]] = {}  # the watched threads
        self._loops: list[Loop] = []
        self._seen: dict[ThreadProgress, tuple[Any, float]] = {}  # the state, and the awake time at which it was new
        self._looked_at = clock()
        self._awake_s = 0.0
        #: Of the last look: the longest time without a turn of a thread that should take one, and the look's own delay.
        self.lag_s = self.late_s = 0.0

    def watch(self, progress: ThreadProgress, died: Callable[[], bool] = lambda: False) -> None:
        """Watch a thread until `leave`; `died` tells whether it has ended without a reason."""
        self._died[progress] = died

    def leave(self, progress: ThreadProgress) -> None:
        self._died.pop(progress, None)

    def watch_loop(self, loop: Loop) -> None:
        """Watch a loop until it is over."""
        self._loops.append(loop)
        self.watch(loop.progress, lambda: loop.died)

    def look(self) -> str | None:
        """Return the problem of a thread, if there is one."""
        now = self._clock()
        self.late_s = max(0.0, now - self._looked_at - LOOK_EVERY_S)
        self._awake_s += min(now - self._looked_at, 2 * LOOK_EVERY_S)
        self._looked_at = now
        for loop in [loop for loop in self._loops if loop.over]:
            self._loops.remove(loop)
            self.leave(loop.progress)
        watched = self._died.copy()
        self._seen = {progress: seen for progress, seen in self._seen.items() if progress in watched}
        problem = next(filter(None, (self._problem(progress, died) for progress, died in watched.items())), None)
        idle_s = (self._awake_s - since_s for (_, _, limit_s), since_s in self._seen.values() if limit_s is None)
        self.lag_s = max(idle_s, default=0.0)
        return problem

    def _problem(self, progress: ThreadProgress, died: Callable[[], bool]) -> str | None:
        state = progress.state
        seen, since_s = self._seen.get(progress, (None, 0.0))
        if seen is not state:
            self._seen[progress] = (state, self._awake_s)
        _, doing, limit_s = state
        if died():
            return f"the thread {progress.name} ended"
        if seen is state and self._awake_s - since_s > (self._limit_s if limit_s is None else limit_s):
            during = f" ({doing})" if doing else ""
            return f"the thread {progress.name} made no progress for {self._awake_s - since_s:.0f} s{during}"
        return None


class Watchdog(ProgressWatch):
    """A thread that looks at the others, and a second thread that looks at the first.

    `on_stuck` is called with a problem. It is expected to end the process.
    """

    def __init__(self, limit_s: float, on_stuck: Callable[[str], object]) -> None:
        super().__init__(limit_s)
        self._on_stuck = on_stuck
        self._stopping = threading.Event()
        self._first = Loop("watchdog", partial(self._turn, self))
        guard = ProgressWatch(limit_s)
        guard.watch_loop(self._first)
        self._second = Loop("watchdog guard", partial(self._turn, guard))
        self.watch_loop(self._second)

    def start(self) -> None:
        self._first.start()
        self._second.start()

    def stop(self) -> None:
        self._stopping.set()
        self._first.join()
        self._second.join()

    def _turn(self, watch: ProgressWatch) -> bool:
        if self._stopping.wait(LOOK_EVERY_S):
            return False
        if problem := watch.look():
            self._on_stuck(problem)
        return True


def end_process(reason: str, last_steps: Iterable[Callable[[], object]]) -> None:
    """End this process at once, after the last steps, none of which can keep it: any of them may hang or fail."""
    signal.setitimer(signal.ITIMER_REAL, LAST_STEPS_S)  # SIGALRM, which has no handler here, ends the process
    logger.critical("%s; this process gives its leases up and ends", reason)
    faulthandler.dump_traceback()
    for step in last_steps:
        try:
            step()
        except Exception as error:  # noqa: BLE001 - leases run out by themselves, and the log has the reason
            logger.warning("%s: %s", type(error).__name__, error)
    os._exit(EXIT_CODE)
