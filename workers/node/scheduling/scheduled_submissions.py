"""A node's part in submissions by the clock: when a run is due on its machine, it starts a process that submits it.

The process reads the source beside the worker, and may be killed at any time: another node goes on with its runs.
"""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from producers.wire.outside.allowed_places import AllowedPlaces
from results_store.store import Store

logger = logging.getLogger(__name__)

#: Seconds between looks for runs.
LOOK_EVERY_S = 2.0

#: Seconds before the process is started again after it failed as a whole.
PAUSE_S = 30.0

#: Seconds in which the process ends when it is told to.
END_S = 5.0

COMMAND = (sys.executable, "-m", "producers.commands.scheduling.due_runs")


class ScheduledSubmissions:
    """Starts the process that submits the runs that are due on this machine. A single thread calls it.

    A node that may read no places (`[worker] schedules`) starts none.
    """

    def __init__(self, store: Store, environment: Mapping[str, str], places: Sequence[str]) -> None:
        self._store = store
        self._allowed = AllowedPlaces(tuple(places))
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._not_before = 0.0

    def look(self) -> None:
        """Start the process if a run is due, unless it is there already, or failed just now."""
        if self._process is not None:
            if (code := self._process.poll()) is None:
                return
            if code:
                logger.error("the process of scheduled submissions ended with %d; the next in %g s", code, PAUSE_S)
                self._not_before = time.monotonic() + PAUSE_S
            self._close()
        if self._allowed.places and time.monotonic() >= self._not_before and self._is_due():
            # its standard input ends when this process does, however it does
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                [*COMMAND, *self._allowed.places], stdin=subprocess.PIPE, env=dict(self._environment)
            )

    def _is_due(self) -> bool:
        return any(self._allowed.may_read(one.submission) for one in self._store.schedules.due(platform.node()))

    def stop(self) -> None:
        """End the process. Its runs are continued once their leases are over."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close()

    def _close(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None


def environment_of(broker_url: str, store_url: str) -> dict[str, str]:
    """Return the environment of the process: this fleet's addresses, which have their passwords."""
    complete = {"ARGOSY_BROKER_URL": broker_url, "ARGOSY_STORE_URL": store_url}
    unwanted = ("ARGOSY_BROKER_PASSWORD_FILE", "ARGOSY_STORE_PASSWORD_FILE")
    return {name: value for name, value in os.environ.items() if name not in unwanted} | complete
