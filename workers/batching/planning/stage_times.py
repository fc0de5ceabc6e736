"""The batches at the device: a running one, a staged one behind it, and a more urgent one that may overtake the staged
one.

A staged batch is overtaken once at most, so that urgent batches cannot keep it waiting for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

B = TypeVar("B")

#: One batch runs, one is staged: the device never waits for Python, and an urgent item waits for two batches at most.
DEPTH = 2


@dataclass(slots=True, eq=False)
class _Given(Generic[B]):
    batch: B
    priority: int
    predicted_s: float
    overtook: bool = False
    overtaken: bool = False


class Stages(Generic[B]):
    """The batches in the order in which the device runs them, as far as is known here. Not thread-safe."""

    def __init__(self) -> None:
        self._given: list[_Given[B]] = []

    def __len__(self) -> int:
        return len(self._given)

    def __iter__(self) -> Iterator[B]:
        return (given.batch for given in list(self._given))

    @property
    def first(self) -> B:
        """The running batch."""
        return self._given[0].batch

    @property
    def has_room(self) -> bool:
        return len(self._given) < DEPTH

    @property
    def overtakable(self) -> int | None:
        """The priority that a batch must exceed in urgency to overtake the staged one, if it may be overtaken."""
        if len(self._given) != DEPTH or self._given[1].overtaken or self._given[0].overtook:
            return None
        return self._given[1].priority

    def give(self, batch: B, priority: int, predicted_s: float, *, overtaking: bool = False) -> None:
        """Add a batch that the device was sent."""
        given = _Given(batch, priority, predicted_s, overtook=overtaking)
        if overtaking:
            self._given[1].overtaken = True
            self._given.insert(1, given)
        else:
            self._given.append(given)

    def busy_s(self, running_s: float, *, overtaking: bool = False) -> float:
        """Predict the start of a further batch, in seconds from now; the running batch has run for `running_s`."""
        if not self._given:
            return 0.0
        first, *staged = self._given
        left_s = max(0.0, first.predicted_s - running_s)
        return left_s if overtaking else left_s + sum(given.predicted_s for given in staged)

    def ahead_s(self, running_s: float) -> tuple[float, float]:
        """Return the seconds until all batches are done, and those by which the running batch is overdue.

        A batch that takes longer than predicted is expected to take as much longer again. Safe from any thread.
        """
        given = list(self._given)
        if not given:
            return 0.0, 0.0
        first, *staged = given
        overdue_s = max(0.0, running_s - first.predicted_s)
        return abs(first.predicted_s - running_s) + sum(each.predicted_s for each in staged), overdue_s

    def end(self, batch: B) -> None:
        """Remove a batch that the device has answered for."""
        self._given = [given for given in self._given if given.batch is not batch]

    def lost(self) -> tuple[list[B], list[B]]:
        """Remove all batches of a lost device; return those that may have run, and those that did not.

        An overtaking batch may have arrived before the first one began, or too late to overtake: any of them may have
        run.
        """
        batches = [given.batch for given in self._given]
        suspected = len(batches) if any(given.overtook for given in self._given) else 1
        self._given = []
        return batches[:suspected], batches[suspected:]
