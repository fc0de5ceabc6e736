"""The request for a picture that the parent sends to the device process, and the answer."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from workers.models.interface import ragged
from workers.models.interface.model import Array


class Wanted(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request for a picture. `guidance` over 1 steers away from `negative`, which needs a second row in each pass."""

    seed: int
    steps: int
    height: int
    width: int
    prompt: str = ""
    negative: str = ""
    guidance: float = 0.0

    @property
    def guided(self) -> bool:
        return self.guidance > 1

    def packed(self) -> Array:
        """Return the request as an array of bytes."""
        return np.frombuffer(msgspec.msgpack.encode(self), dtype=np.uint8)


class Drawn(msgspec.Struct, frozen=True, omit_defaults=True):
    """A picture's pixels, row by row, of `channels` bytes each. `flagged`: the folder's safety checker blackened it."""

    pixels: bytes
    height: int
    width: int
    channels: int
    flagged: bool = False

    def image(self) -> NDArray[np.uint8]:
        """Return the pixels `(height, width, 3)`, or `(height, width)` if there is a single channel."""
        shape = (self.height, self.width, self.channels)
        pixels = np.frombuffer(self.pixels, dtype=np.uint8).reshape(shape)
        return pixels[..., 0] if self.channels == 1 else pixels


def unpack(row: Array) -> Wanted:
    """Return the request in a row that `ragged` packed."""
    return msgspec.msgpack.decode(ragged.unpack(row), type=Wanted)
