"""Assigns examples to steps and to processes: pure, so that all processes agree without communication."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: A task, and the number of one of its examples.
Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps of `rows` examples. A task's chance is its size to the power of 1 / `temperature`; its examples come
    in shuffled epochs, each example once per epoch.
    """

    sizes: tuple[int, ...]
    rows: int
    temperature: float
    seed: int

    def chances(self) -> NDArray[np.float64]:
        powers = np.array(self.sizes, dtype=np.float64) ** (1 / self.temperature)
        chances: NDArray[np.float64] = powers / powers.sum()
        return chances

    def steps(self, first: int, last: int) -> Iterator[list[Place]]:
        """Yield the examples of the steps from `first` up to `last`; they do not depend on the process or on
        `first`.
        """
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
    """Return the rows of a step for a process, a list for each of its micro-batches.

    Rows of similar length go into the same micro-batch of all processes, so that padding and waiting stay small.
    """
    order = np.argsort(np.asarray(lengths), kind="stable")
    return [part[rank::processes].tolist() for part in np.array_split(order, accumulate)]
