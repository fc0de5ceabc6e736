"""The interruptions of a node's trainings, counted so that none starts over for ever."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from producers.wire.training.training_job import CHECKPOINT

#: A training that was interrupted so many times in a row at the same checkpoint is interrupted no more.
MOST_IN_VAIN = 3


class Interruptions:
    """Counts the interruptions of each envelope at its newest checkpoint. For one thread at a time.

    Work without checkpoints, as the judging after the last step, begins again after each interruption. Each node counts
    its own.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, int]] = {}  # the time of the newest checkpoint, and the interruptions since

    def note(self, envelope: str, folder: str) -> None:
        """Count an interruption. `folder` is that of the training; nothing if it is not known yet."""
        newest, count = self._at(envelope, folder)
        self._known[envelope] = (newest, count + 1)

    def are_in_vain(self, envelope: str, folder: str) -> bool:
        """Return whether the training was interrupted too often since its newest checkpoint."""
        return self._at(envelope, folder)[1] >= MOST_IN_VAIN

    def forget(self, envelope: str) -> None:
        """Forget a training that has ended."""
        self._known.pop(envelope, None)

    def _at(self, envelope: str, folder: str) -> tuple[int, int]:
        before, count = self._known.get(envelope, (0, 0))
        newest = _newest_checkpoint(Path(folder)) if folder else before
        return newest, count if newest == before else 0


def _newest_checkpoint(folder: Path) -> int:
    """Return the time (Unix, in ns) of the newest checkpoint of a training and of the parts of its comparison, or 0."""
    newest = 0
    for file in folder.rglob(CHECKPOINT):
        with suppress(OSError):  # it is being replaced
            newest = max(newest, file.stat().st_mtime_ns)
    return newest
