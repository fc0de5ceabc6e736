"""Watching from outside how the work goes on: what is accepted, what is done, and how long nothing was."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from results_store.errors import StoreError
from results_store.store import Store

#: Seconds between two looks.
EVERY_S = 0.1

#: Seconds without any result after which unfinished work counts as stuck.
STUCK_S = 150.0


class Progress:
    """Looks at the jobs' counters in a thread of its own; while the database is away the last look stands."""

    def __init__(self, store: Store) -> None:
        self.total = 0
        self.done = 0
        self.longest_stall_s = 0.0
        self._store = store
        self._started = time.monotonic()
        self._moved = self._started
        self._looked = 0.0  # when the last look began
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
        """Return once `condition` holds. Raises TimeoutError, which says how far the work is, after `timeout_s` or once
        the work is stuck.
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            now = time.monotonic()
            if now > deadline or (self.unfinished and now - self._moved > STUCK_S):
                raise TimeoutError(
                    f"the work is stuck or takes too long: {self}, the last {now - self._moved:.0f} s ago"
                )
            time.sleep(0.02)

    def wait_for_all(self, timeout_s: float) -> None:
        """Return once a look that begins from now on finds nothing unfinished. Raises TimeoutError."""
        now = time.monotonic()
        self.wait_for(lambda: self._looked > now and self.unfinished == 0, timeout_s)

    def wait_for_more(self, timeout_s: float) -> None:
        """Return once there are more results than now."""
        done = self.done
        self.wait_for(lambda: self.done > done, timeout_s)

    def wait_for_newer(self, timeout_s: float) -> None:
        """Return once so many results are there that some must be of later submissions."""
        total = self.total
        self.wait_for(lambda: self.done > total, timeout_s)

    def _watch(self) -> None:
        while not self._stopping.wait(EVERY_S):
            looked = time.monotonic()
            try:
                jobs = self._store.jobs(limit=100_000)
            except StoreError:
                continue
            total, done = sum(job.total for job in jobs), sum(job.done for job in jobs)
            now = time.monotonic()
            self.longest_stall_s = max(self.longest_stall_s, now - self._moved)
            if done > self.done or self.unfinished == 0:
                self._moved = now
            self.total, self.done = total, done
            self._looked = looked
