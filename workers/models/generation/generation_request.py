"""What travels from the parent to the device process for one request, and what comes back."""

from __future__ import annotations

import msgspec
import numpy as np

from workers.models.interface import ragged
from workers.models.interface.model import Array


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the next token is chosen; a temperature of 0 takes the likeliest, any other needs a `seed`."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    """A prompt and what is wanted of it: up to `max_new_tokens`, or the likelihood of each of `labels`.

    The first `shared` tokens begin every prompt of the task. `grammar` (llguidance's) bounds what may be written.
    `stream` asks for the text piece by piece.
    """

    tokens: list[int]
    max_new_tokens: int = 0
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    stream: bool = False
    labels: list[list[int]] = []
    grammar: str = ""
    shared: int = 0

    def packed(self) -> Array:
        """As the bytes of an array."""
        return np.frombuffer(msgspec.msgpack.encode(self), dtype=np.uint8)


class Written(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to a request: text and why it ends (`stop` or `length`), or the labels' log-likelihoods.

    `cached_tokens` of the prompt were there already, from an earlier prompt that began alike.
    """

    text: str = ""
    finish_reason: str = ""
    completion_tokens: int = 0
    cached_tokens: int = 0
    scores: list[float] = []


def unpack(row: Array) -> Request:
    """Return the request in a row that `ragged` packed."""
    return msgspec.msgpack.decode(ragged.unpack(row), type=Request)
