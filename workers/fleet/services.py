"""The processes of a local fleet: start, stop, restart after an unexpected end, and bounded logs."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import signal
import subprocess
import sys
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

#: A log keeps at most twice this many bytes: itself, and one copy of its earlier part.
LOG_BYTES = 10_000_000

_TAIL_BYTES = 8192

#: The lines of a log that are said with the end of its process, and the most characters of each.
_SAID_LINES = 3
_SAID_CHARACTERS = 300

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


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

    def due(self, name: str, ending: Callable[[], str]) -> bool:
        """Return whether an ended service may restart now. The first call after the end sets the time of restart."""
        now = self.clock()
        if self.restart_at is None:
            if now - self.started_at >= HEALTHY_S:
                self.failures = 0
            wait_s = min(self.longest_wait_s, FIRST_WAIT_S * 2**self.failures)
            self.failures += 1
            self.restart_at = now + wait_s
            logger.warning("%s ended: %s; restarting it in %g s", name, ending(), wait_s)
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
        self.process = spawn(self.command, self.log, self.environment)

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(self.stop_timeout_s)
            except subprocess.TimeoutExpired:
                logger.warning("%s did not stop in %g s and is killed", self.name, self.stop_timeout_s)
                self.process.kill()
                self.process.wait()

    def ending(self) -> str:
        """Return how the process ended, with the end of its log."""
        return ending(self.process, self.log)


def spawn(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None, *, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start a process that appends to its log, hears no Ctrl-C, and gets SIGTERM if this process dies (on Linux).

    The kernel ties this signal to the thread that starts the process: start processes in a thread that lives on.
    """
    launcher = os.getpid()

    def die_with_launcher() -> None:
        if _libc is not None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != launcher:  # it died before the call
                os.kill(os.getpid(), signal.SIGTERM)

    with log.open("ab") as out:
        return subprocess.Popen(  # noqa: S603 - our own commands
            command,
            env=None if environment is None else dict(environment),
            stdin=stdin,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_launcher,  # noqa: PLW1509 - it takes no lock
        )


def bound_log(log: Path) -> None:
    """Move a long log to ``NAME.1``, over the copy before. Its process goes on writing to the emptied file."""
    if log.exists() and log.stat().st_size > LOG_BYTES:
        shutil.copyfile(log, log.with_name(f"{log.name}.1"))
        os.truncate(log, 0)


def ending(process: subprocess.Popen[bytes] | None, log: Path) -> str:
    """Return the exit code or the signal of an ended process, and the last lines of its log."""
    code = process.returncode if process else None
    if code is None:
        how = "not started"
    elif code >= 0:
        how = f"exit code {code}"
    else:
        how = f"signal {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            how += ", which the kernel sends too if memory runs out"
    return f"{how}; the end of its log: {last_words(log, _SAID_LINES)}"


def last_words(log: Path, most: int = 1) -> str:
    """Return the last non-empty lines of a log of any length, or the reason why it cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError as error:
        return f"its log cannot be read: {error}"
    said = [
        line if len(line) <= _SAID_CHARACTERS else f"{line[:_SAID_CHARACTERS]} …" for line in lines if line.strip()
    ][-most:]
    return " | ".join(said) or "its log is empty"
