"""The processes of a local fleet: start, stop, and restart after an unexpected end."""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

logger = logging.getLogger(__name__)

#: Seconds before an ended service is restarted: doubled each time, up to the longest.
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 30.0

#: A service that ran this long was healthy: its next restart waits only the first time again.
HEALTHY_S = 10.0

_TAIL_BYTES = 8192


@dataclass(slots=True)
class Restarts:
    """The times at which a service that keeps ending may be restarted."""

    longest_wait_s: float = LONGEST_WAIT_S
    clock: Callable[[], float] = time.monotonic
    failures: int = 0
    started_at: float = 0.0
    restart_at: float | None = None

    def started(self) -> None:
        """Record a start."""
        self.started_at = self.clock()
        self.restart_at = None

    def due(self, name: str, last_words: Callable[[], str]) -> bool:
        """Return whether an ended service may restart now. The first call after the end sets the time of restart."""
        now = self.clock()
        if self.restart_at is None:
            if now - self.started_at >= HEALTHY_S:
                self.failures = 0
            wait_s = min(self.longest_wait_s, FIRST_WAIT_S * 2**self.failures)
            self.failures += 1
            self.restart_at = now + wait_s
            logger.warning("%s ended (%s); restarting it in %g s", name, last_words(), wait_s)
        return now >= self.restart_at


@dataclass(slots=True)
class Service:
    """A process of the fleet, with everything needed to restart it."""

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
        """Return the last non-empty line of the log."""
        return last_words(self.log)


def last_words(log: Path) -> str:
    """Return the last non-empty line of a log of any length, or the reason why it cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError as error:
        return f"its log cannot be read: {error}"
    return next((line for line in reversed(lines) if line.strip()), "its log is empty")
