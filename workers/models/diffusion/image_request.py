"""What travels from the parent to the device process for one picture, and what comes back."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from workers.models.interface import ragged
from workers.models.interface.model import Array


class Wanted(msgspec.Struct, frozen=True, omit_defaults=True):
    """A picture to be made. `guidance` over 1 compares with what `negative` gives, which takes a row more in each pass."""

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
        """As the bytes of an array."""
        return np.frombuffer(msgspec.msgpack.encode(self), dtype=np.uint8)


class Drawn(msgspec.Struct, frozen=True, omit_defaults=True):
    """A picture's pixels, row by row, each of `channels` bytes. `flagged`: the folder's own checker blackened it."""

    pixels: bytes
    height: int
    width: int
    channels: int
    flagged: bool = False

    def image(self) -> NDArray[np.uint8]:
        """Return the pixels `(height, width, 3)`, or `(height, width)` where a pixel is but one number."""
        shape = (self.height, self.width, self.channels)
        pixels = np.frombuffer(self.pixels, dtype=np.uint8).reshape(shape)
        return pixels[..., 0] if self.channels == 1 else pixels


def unpack(row: Array) -> Wanted:
    """Return the request in a row that `ragged` packed."""
    return msgspec.msgpack.decode(ragged.unpack(row), type=Wanted)
