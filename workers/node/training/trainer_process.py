"""The process of a training, as its node holds it: started, paused, asked to stop after a checkpoint, killed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, Self

import msgspec

from producers.wire.training.training_job import TrainerReport

#: The program of a trainer. It imports torch, which this process never does.
PROGRAM: Final = (sys.executable, "-m", "workers.training.recipes.submitted_run")

_CHUNK_BYTES = 65536


class TrainerProcess:
    """A trainer, from `start` to `close`, which kills it. It dies with this process, and has no address or password.

    Used by one thread, which lives as long as the trainer: the kernel ties the trainer's end to it.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self._arguments = arguments
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._reports = -1
        self._rest = b""
        self.is_paused = False

    def start(self) -> Self:
        """Start it. Raises OSError if the system gives no process, descriptor or memory."""
        self._reports, theirs = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [*PROGRAM, str(theirs), *self._arguments],
                env=dict(self._environment),
                pass_fds=[theirs],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C in the terminal is for the worker
            )
        finally:
            os.close(theirs)
        return self

    def reports(self, timeout_s: float) -> list[TrainerReport] | None:
        """Return the reports that have come within the time; None once the trainer has ended."""
        readable = select.poll()
        readable.register(self._reports, select.POLLIN)
        if not readable.poll(timeout_s * 1000):
            return []
        if not (data := os.read(self._reports, _CHUNK_BYTES)):
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [msgspec.json.decode(line, type=TrainerReport) for line in lines]

    def pause(self) -> None:
        """Stop its computation at once, wherever it is. It keeps its memory."""
        self._signal(signal.SIGSTOP)
        self.is_paused = True

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)
        self.is_paused = False

    def ask_to_stop(self) -> None:
        """Let it end after its current step and a checkpoint. Its reports tell when it has."""
        self._signal(signal.SIGTERM)
        self.go_on()

    def wait(self) -> int:
        """Wait for its end; return its exit code, a negative number for a signal."""
        assert self._process, "it was started"
        return self._process.wait()

    def close(self) -> None:
        """Kill it, if it runs, and forget it."""
        if self._process:
            self._signal(signal.SIGKILL)
            self._process.wait()
        if self._reports >= 0:
            os.close(self._reports)
        self._reports = -1

    def _signal(self, number: signal.Signals) -> None:
        assert self._process, "it was started"
        with suppress(ProcessLookupError):  # it has ended
            os.killpg(self._process.pid, number)
