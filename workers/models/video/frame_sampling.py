"""Which frames of a video are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from producers.wire.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Sampling:
    """So many frames, spread evenly; or with a `rate` N every Nth from the beginning."""

    num_frames: int
    rate: int | None = None

    def places(self, total: int) -> list[int]:
        """Return the frames' numbers in a video of `total`. A short video's are repeated: evenly, or its last."""
        if self.rate is None:  # as the video processors of transformers sample
            return [number * total // self.num_frames for number in range(self.num_frames)]
        # as its video-classification pipeline does for image processors, by numpy's linspace, whose roundings count
        last = self.num_frames * self.rate - 1
        found = np.linspace(0, last, num=self.num_frames, dtype=np.int64).tolist()
        return [min(place, total - 1) for place in found]


def sampled_alike(
    params: Mapping[str, msgspec.Struct], sampling_of: Callable[[Any], Sampling]
) -> tuple[Sampling, dict[str, InvalidInput]]:
    """Return the sampling that the first task wants, and the refusals of tasks that want another: a row has one set of frames.

    Raises InvalidInput if no task's parameters will do.
    """
    found: Sampling | None = None
    refused: dict[str, InvalidInput] = {}
    for task, chosen in params.items():
        try:
            wanted = sampling_of(chosen)
        except InvalidInput as error:
            refused[task] = error
            continue
        found = found or wanted
        if wanted != found:
            refused[task] = InvalidInput(
                "params", "asks for other frames than the item's other tasks", "submit it by itself"
            )
    if found is None:
        raise next(iter(refused.values()))
    return found, refused
