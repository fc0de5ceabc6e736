"""The request that the parent sends to the device process for a row and a task, and the answer."""

from __future__ import annotations

import msgspec
import numpy as np

from workers.models.interface import ragged
from workers.models.interface.model import Array, Arrays


class Carried(msgspec.Struct, frozen=True, array_like=True):
    """An array as plain values."""

    dtype: str
    shape: tuple[int, ...]
    content: bytes

    @classmethod
    def of(cls, array: Array) -> Carried:
        return cls(array.dtype.str, array.shape, np.ascontiguousarray(array).tobytes())

    @property
    def array(self) -> Array:
        return np.frombuffer(self.content, dtype=self.dtype).reshape(self.shape)


class ExplanationRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """A prepared row of this `size`, for a task. Without `steps` only the model's own output is wanted. `target` is the
    label's index among the scores; None for the best label.
    """

    row: dict[str, Carried]
    size: int
    about: dict[str, Carried] = {}
    steps: int = 0
    target: int | None = None

    def packed(self) -> Array:
        """Return the request as an array of bytes."""
        return np.frombuffer(msgspec.msgpack.encode(self), dtype=np.uint8)


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The model's own output for the row; with an explanation, also the contributions to the label `target`."""

    output: Carried
    target: int | None = None
    contributions: Carried | None = None
    value: float = 0.0
    base: float = 0.0


def carried(arrays: Arrays) -> dict[str, Carried]:
    return {name: Carried.of(array) for name, array in arrays.items()}


def arrays(carried_: dict[str, Carried]) -> Arrays:
    return {name: one.array for name, one in carried_.items()}


def unpack(row: Array) -> ExplanationRequest:
    """Return the request in a row that `ragged` packed."""
    return msgspec.msgpack.decode(ragged.unpack(row), type=ExplanationRequest)
