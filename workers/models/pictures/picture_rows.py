"""Rows of pictures and videos of any size: concatenate them, group them by shape, and pack pictures as outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from producers.wire.errors import InvalidInput
from workers.models.interface import ragged
from workers.models.interface.model import Array, Arrays, Prepared
from workers.models.pictures import pixels

Pixels = NDArray[np.uint8]

#: A row's size is counted in squares of this many pixels.
_SQUARE = 32 * 32


def read(content: Any, *, most_pixels: int, longest_side: int | None = None) -> Pixels:
    """Decode a picture to `(height, width, 3)`, scaled down to `longest_side`, if set.

    Raises InvalidInput, or InputTooLarge over `most_pixels`.
    """
    if not isinstance(content, bytes):
        raise InvalidInput("input", f"must be the bytes of an image file, not {type(content).__name__}")

    made = partial(pixels.scaled_down, most_pixels=most_pixels, longest_side=longest_side)
    return pixels.read(content, made, max_pixels=pixels.MAX_PIXELS if longest_side else most_pixels)


def squares(pixels: Array) -> int:
    """Return the size of a row of pixels `(…, height, width, 3)`, for its cost and for batches of similar rows."""
    return max(1, math.prod(pixels.shape[:-1]) // _SQUARE)


def collate(rows: Sequence[Prepared]) -> Arrays:
    """Concatenate the rows' pixels, with their `shapes`."""
    return {
        "pixels": np.concatenate([row.arrays["pixels"].ravel() for row in rows]),
        "shapes": np.array([row.arrays["pixels"].shape[:-1] for row in rows], dtype=np.int64),
    }


def by_shape(arrays: Mapping[str, Array]) -> list[tuple[list[int], Array]]:
    """Return, for each shape, the indices of its rows and their pixels `(rows, …, height, width, 3)`."""
    groups: dict[tuple[int, ...], list[int]] = {}
    ends = np.cumsum(arrays["shapes"].prod(axis=1) * 3)
    starts = np.concatenate(([0], ends[:-1]))
    for row, shape in enumerate(arrays["shapes"].tolist()):
        groups.setdefault(tuple(shape), []).append(row)
    return [
        (rows, np.stack([arrays["pixels"][starts[row] : ends[row]].reshape(*shape, 3) for row in rows]))
        for shape, rows in groups.items()
    ]


def packed(pictures: Sequence[Pixels]) -> Array:
    """Pack pictures `(height, width, 3)` of different sizes into rows of one array."""
    return ragged.pack([{"pixels": picture.tobytes(), "shape": list(picture.shape)} for picture in pictures])


def unpacked(row: Array) -> Pixels:
    """Return the picture in a row."""
    found = ragged.unpack(row)
    return np.frombuffer(found["pixels"], dtype=np.uint8).reshape(found["shape"])
