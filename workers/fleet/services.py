"""The processes that a local fleet keeps running: how one is started, stopped, and started again after it ended."""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

logger = logging.getLogger(__name__)

#: Seconds before what ended is started again: doubled each time, up to the longest.
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 30.0

#: What ran this long before it ended was healthy: its next start waits no longer than the first did.
HEALTHY_S = 10.0

_TAIL_BYTES = 8192


@dataclass(slots=True)
class Restarts:
    """When something that keeps ending may be started again."""

    longest_wait_s: float = LONGEST_WAIT_S
    clock: Callable[[], float] = time.monotonic
    failures: int = 0
    started_at: float = 0.0
    restart_at: float | None = None

    def started(self) -> None:
        """Take note of a start."""
        self.started_at = self.clock()
        self.restart_at = None

    def due(self, name: str, last_words: Callable[[], str]) -> bool:
        """Say whether what has ended is to be started now. The first look at an end sets the time for that."""
        now = self.clock()
        if self.restart_at is None:
            if now - self.started_at >= HEALTHY_S:
                self.failures = 0
            wait_s = min(self.longest_wait_s, FIRST_WAIT_S * 2**self.failures)
            self.failures += 1
            self.restart_at = now + wait_s
            logger.warning("%s ended (%s); starting it again in %g s", name, last_words(), wait_s)
        return now >= self.restart_at


@dataclass(slots=True)
class Service:
    """One process of the fleet and how to start it again."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    ready_file: Path | None = None
    stop_timeout_s: float = 10.0
    process: subprocess.Popen[bytes] | None = None
    restarts: Restarts = field(default_factory=Restarts)

    def start(self) -> None:
        self.restarts.started()
        if self.ready_file:
            self.ready_file.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - our own commands
                self.command,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(self.stop_timeout_s)
            except subprocess.TimeoutExpired:
                logger.warning("%s did not stop in %g s and is killed", self.name, self.stop_timeout_s)
                self.process.kill()
                self.process.wait()

    def last_words(self) -> str:
        """The last line of its log that says something."""
        return last_words(self.log)


def last_words(log: Path) -> str:
    """Return the last line of a log, however long it is, that says something."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return next((line for line in reversed(lines) if line.strip()), "it said nothing")
