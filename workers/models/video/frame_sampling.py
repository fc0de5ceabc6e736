"""The choice of the frames that are read from a video."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from producers.wire.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class FrameSampling:
    """`num_frames` frames at equal distances, or, with a `rate` N, every Nth from the beginning."""

    num_frames: int
    rate: int | None = None

    def places(self, total: int) -> list[int]:
        """Return the frame numbers in a video of `total` frames. A short video repeats frames: evenly, or its last."""
        if self.rate is None:  # like the video processors of transformers
            return [number * total // self.num_frames for number in range(self.num_frames)]
        # like transformers' video-classification pipeline for image processors: with numpy's linspace and its roundings
        last = self.num_frames * self.rate - 1
        found = np.linspace(0, last, num=self.num_frames, dtype=np.int64).tolist()
        return [min(place, total - 1) for place in found]


def sampled_alike(
    params: Mapping[str, msgspec.Struct], sampling_of: Callable[[Any], FrameSampling]
) -> tuple[FrameSampling, dict[str, InvalidInput]]:
    """Return the sampling of the first task, and the errors of the tasks with another: a row has one set of frames.

    Raises InvalidInput if the parameters of every task are wrong.
    """
    found: FrameSampling | None = None
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
                "params", "asks for other frames than the item's other tasks", "submit it as an item of its own"
            )
    if found is None:
        raise next(iter(refused.values()))
    return found, refused
