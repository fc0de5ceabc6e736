"""Which examples a step learns from, and which process takes which of them: pure, so that all processes agree unasked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: A task, and one of its examples.
Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps of `rows` examples. A task is drawn with a chance of its size to the power of 1 / `temperature`; its examples come
    in shuffled epochs, each once before any comes again."""

    sizes: tuple[int, ...]
    rows: int
    temperature: float
    seed: int

    def chances(self) -> NDArray[np.float64]:
        powers = np.array(self.sizes, dtype=np.float64) ** (1 / self.temperature)
        chances: NDArray[np.float64] = powers / powers.sum()
        return chances

    def steps(self, first: int, last: int) -> Iterator[list[Place]]:
        """Yield the examples of the steps from `first` up to `last`, the same whoever asks and wherever it begins."""
        streams = [self._stream(task) for task in range(len(self.sizes))]
        chances = self.chances()
        for step in range(last):
            drawn = np.random.default_rng((self.seed, step)).choice(len(self.sizes), self.rows, p=chances)
            places = [(int(task), next(streams[task])) for task in drawn]
            if step >= first:
                yield places

    def _stream(self, task: int) -> Iterator[int]:
        epoch = 0
        while True:
            yield from map(int, np.random.default_rng((self.seed, task, epoch)).permutation(self.sizes[task]))
            epoch += 1


def share(lengths: Sequence[int], *, rank: int, processes: int, accumulate: int) -> list[list[int]]:
    """Return which rows of a step a process takes, a list for each of its micro-batches.

    Rows of like lengths go into the same micro-batch of all processes, so that there is little padding and nobody waits long.
    """
    order = np.argsort(np.asarray(lengths), kind="stable")
    return [part[rank::processes].tolist() for part in np.array_split(order, accumulate)]
