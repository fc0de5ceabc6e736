"""Assigns examples to steps and to processes: pure, so that all processes agree without communication."""

from __future__ import annotations

from collections import Counter
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

    `sizes` are those of streams of examples, and `tasks` has the tasks that each stream has labels of: by default, each
    stream is a task. The chance of a stream with several is the mean of its examples' chances as examples of each task.
    """

    sizes: tuple[int, ...]
    rows: int
    temperature: float
    seed: int
    tasks: tuple[tuple[int, ...], ...] = ()

    def chances(self) -> NDArray[np.float64]:
        own = self.tasks or tuple((number,) for number in range(len(self.sizes)))
        counts: Counter[int] = Counter()
        for size, tasks in zip(self.sizes, own, strict=True):
            counts.update(dict.fromkeys(tasks, size))
        each = [np.mean([counts[task] ** (1 / self.temperature - 1) for task in tasks]) for tasks in own]
        powers = np.array(self.sizes) * np.array(each)
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
