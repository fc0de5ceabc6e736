"""The request that the parent sends to the device process, and the answer."""

from __future__ import annotations

import msgspec
import numpy as np

from workers.models.interface import ragged
from workers.models.interface.model import Array


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """The sampling of the next token. Temperature 0 takes the most likely token; any other needs a `seed`."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None


class GenerationRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """A prompt, and the wanted output: up to `max_new_tokens` tokens, or the likelihood of each of `labels`.
    At the end of a label, an end token stands for all of them.

    The first `shared` tokens are common to every prompt of the task. `grammar` (of llguidance) restricts the answer.
    `stream` requests the text in pieces.
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
        """Return the request as an array of bytes."""
        return np.frombuffer(msgspec.msgpack.encode(self), dtype=np.uint8)


class Written(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to a request: the text and its `finish_reason` (`stop` or `length`), or the labels' log-likelihoods.

    `cached_tokens` is the number of prompt tokens that came from the prefix cache.
    """

    text: str = ""
    finish_reason: str = ""
    completion_tokens: int = 0
    cached_tokens: int = 0
    scores: list[float] = []


def unpack(row: Array) -> GenerationRequest:
    """Return the request in a row that `ragged` packed."""
    return msgspec.msgpack.decode(ragged.unpack(row), type=GenerationRequest)
