"""A trainer: the process in which a node trains a recipe that was submitted as a job.

    python -m workers.training.recipes.submitted_run FD RECIPE SHA256 DEVICE [--compare]

It tells its node each step, and how it ends, over the pipe FD. It goes on from the last checkpoint in the recipe's
folder. After SIGTERM it ends with its current step and a checkpoint. It has the lowest priority for a processor, is the
kernel's first choice when memory runs out, and dies with its node.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import statistics
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import msgspec

from producers.wire.errors import ArgosyError, ConfigurationError
from producers.wire.training.training_job import TrainerReport
from workers.training.loop import processes
from workers.training.loop.processes import Process
from workers.training.loop.trainer import LogLine, TrainingStopped
from workers.training.recipes import recipe_file, training_run
from workers.training.recipes.folder_lock import FolderInUse, locked
from workers.training.recipes.served_folder import SETTINGS

_PR_SET_PDEATHSIG = 1

#: The steps whose median is the usual time of a step: one in which the trainer stood still is longer.
_USUAL_STEPS = 20

#: The seconds for a trainer before this one, of a node that lost its connections, to leave the folder.
_FOLDER_S = 120.0


class SubmittedRun:
    """A training whose steps are told to a node, as lines of JSON in the pipe `told`."""

    def __init__(self, told: int, recipe: Path, sha256: str, process: Process, *, compare: bool) -> None:
        self._told = told
        self._recipe, self._sha256 = recipe, sha256
        self._process, self._compare = process, compare
        self._stopping = Event()

    def run(self) -> None:
        """Train, and tell the end. Raises FolderInUse if another trainer does not leave the folder."""
        try:
            self.tell(TrainerReport(output=self._trained()))
        except TrainingStopped:
            self.tell(TrainerReport(stopped=True))
        except FolderInUse:  # it is tried again
            raise
        except ArgosyError as error:
            self.tell(TrainerReport(error={"kind": type(error).__name__, "message": str(error)}))

    def tell(self, report: TrainerReport) -> None:
        line = msgspec.json.encode(report) + b"\n"
        while line:  # a signal may come in the middle
            line = line[os.write(self._told, line) :]

    def _trained(self) -> dict[str, Any]:
        if hashlib.sha256(self._recipe.read_bytes()).hexdigest() != self._sha256:
            raise ConfigurationError(f"{self._recipe}: has changed since it was submitted; submit it again")
        file = recipe_file.load(self._recipe)
        with locked(file.out, wait_s=_FOLDER_S):
            self.tell(TrainerReport(training=file.name, doing="reads its rows", folder=str(file.out)))
            training = training_run.prepare(file, resume=True, process=self._process)
            signal.signal(signal.SIGTERM, lambda *_: self._stopping.set())  # before, there is nothing to keep
            card = training_run.run(training, self._shown(file.name), self._stopping.is_set)
            if self._compare:
                card = training_run.compare(training, card, self._shown, self._stopping.is_set)
        results = {"tasks": msgspec.to_builtins(card.tasks), "steps": card.steps, "best_step": card.best_step}
        return {"folder": str(file.out), "fleet": str(file.out / SETTINGS), "seconds": card.seconds, **results}

    def _shown(self, name: str) -> Callable[[LogLine, int], None]:
        seconds: deque[float] = deque(maxlen=_USUAL_STEPS)

        def show(line: LogLine, steps: int) -> None:
            seconds.append(line.seconds)
            usual_s = statistics.median(seconds)
            self.tell(TrainerReport(training=name, doing="trains", step=line.step, steps=steps, step_s=usual_s))
            if line.step == steps:
                self.tell(TrainerReport(training=name, doing="judges the test part and writes the folder"))

        return show


def _step_back() -> None:
    """Leave processors and memory to all other processes, and end with the node."""
    os.nice(19)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    if sys.platform == "linux":
        # if the node has died before, the first report finds the pipe closed
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(arguments: Sequence[str]) -> None:
    _step_back()
    told, recipe, sha256, device, *options = arguments
    run = SubmittedRun(
        int(told), Path(recipe), sha256, Process(device=processes.placed(device, 0)), compare="--compare" in options
    )
    run.run()


if __name__ == "__main__":
    main(sys.argv[1:])
