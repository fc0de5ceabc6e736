"""Watching from outside how the work goes on: what is accepted, what is done, and how long nothing was."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from results_store.errors import StoreError
from results_store.store import Store

#: Seconds between two looks.
EVERY_S = 0.1


class Progress:
    """Looks at the jobs' counters in a thread of its own; while the database is away the last look stands."""

    def __init__(self, store: Store) -> None:
        self.total = 0
        self.done = 0
        self.longest_stall_s = 0.0
        self._store = store
        self._started = time.monotonic()
        self._moved = self._started
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress")

    def __str__(self) -> str:
        return f"{self.done:,} of {self.total:,} results"

    @property
    def unfinished(self) -> int:
        return self.total - self.done

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    def start(self) -> None:
        self._started = self._moved = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def wait_for(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Return once `condition` holds. Raises TimeoutError, saying how far the work is."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"the run takes too long: {self}, the last {time.monotonic() - self._moved:.0f} s ago"
                )
            time.sleep(0.02)

    def wait_for_more(self, timeout_s: float) -> None:
        """Return once there are more results than now."""
        done = self.done
        self.wait_for(lambda: self.done > done, timeout_s)

    def _watch(self) -> None:
        while not self._stopping.wait(EVERY_S):
            try:
                jobs = self._store.jobs(limit=100_000)
            except StoreError:
                continue
            total, done = sum(job.total for job in jobs), sum(job.done for job in jobs)
            now = time.monotonic()
            if done > self.done or self.unfinished == 0:
                self.longest_stall_s = max(self.longest_stall_s, now - self._moved)
                self._moved = now
            self.total, self.done = total, done
