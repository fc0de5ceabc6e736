"""The base classes of text tasks: read an item into token sequences, and turn their outputs into an answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from msgspec import field

from producers.wire.catalogue import Task
from producers.wire.errors import InputTooLarge, InvalidInput
from workers.models.huggingface import tokenizer_file
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.huggingface.checkpoint_model import HeadOptions
from workers.models.huggingface.token_sequences import Reading, TokenSequence
from workers.models.huggingface.tokenizing import Cut, Tokenizing
from workers.models.interface.model import SCORE_DIGITS, Array
from workers.models.interface.options import Count, Table, Text
from workers.models.interface.text_block import BlockAnswers

if TYPE_CHECKING:
    import torch
    from tokenizers import Encoding


class EncoderOptions(HeadOptions, frozen=True):
    """`onnx` is the ONNX file, from the folder on, that the model is served from; sources set it (docs/models.md).

    `max_tokens` is by default the checkpoint's own limit. `adapters` gives a task its LoRA folder. `pooling` makes a
    text's vector from its tokens' vectors, and `prompt` names the text put before it, by default as the folder says.
    """

    onnx: Text | None = None
    max_tokens: Count | None = None
    adapters: Table = field(default_factory=dict)
    pooling: Text | None = None
    prompt: Text | None = None


@dataclass(frozen=True)
class TextReader(ABC):
    """A task that reads texts. `checkpoint` is the folder of its network and gives its labels."""

    task: Task
    checkpoint: Checkpoint
    tokenizing: Tokenizing
    max_tokens: int

    #: The transformers class that loads the network.
    auto: ClassVar[str]

    @abstractmethod
    def read(self, content: Any, params: Any) -> Reading:
        """Return the sequences that the task needs from an input. Raises InvalidInput."""

    @abstractmethod
    def finish(self, output: Array, params: Any, aside: Any) -> Any:
        """Turn the output for an item into the task's answer."""

    def check(self) -> None:
        """Raise ConfigurationError if the folder or the options do not fit this kind."""
        tokenizer_file.locate(self.tokenizing.checkpoint)  # reading it waits for the first text: see Tokenizing.check

    def whole(self, text: str) -> str:
        """Return a text as the network reads it."""
        return text

    def one(self, text: Any, params: Any, pair: str | None = None, cut: Cut = "longest_first") -> TokenSequence:
        """Return a text as a single sequence, cut if `truncation` is set. Raises InputTooLarge, InvalidInput."""
        encoding = self.encode(text, pair)
        if len(encoding.ids) > self.max_tokens:
            if not getattr(params, "truncation", False):
                raise too_long(len(encoding.ids), self.max_tokens)
            encoding = self.tokenizing.cut(text, pair, self.max_tokens, cut)
        return TokenSequence.of(encoding)

    def encode(self, text: Any, pair: str | None = None) -> Encoding:
        """Return all tokens of a text. Raises InvalidInput if it has none."""
        if not isinstance(text, str):
            raise InvalidInput("input", f"must be text, not {type(text).__name__}", "decode it before submitting")
        encoding = self.tokenizing.encode(text, pair)
        if sum(encoding.special_tokens_mask) == len(encoding.ids):
            raise InvalidInput("input", "is empty or has no readable characters", "give it some text")
        return encoding


@dataclass(frozen=True)
class TextHead(TextReader):
    """A task that needs a single pass. `finish` gets the outputs of its sequences, `(sequences or more, …)`."""

    options: EncoderOptions

    #: Whether `compute` returns a row for each token instead of a row for the sequence.
    by_token: ClassVar[bool] = False

    # --- in the parent process, for many texts ---

    #: Whether the task needs a text's own tokens and nothing else, so that `finish_block` finishes many.
    in_blocks: ClassVar[bool] = False

    def finish_block(self, outputs: Array, params: Any) -> BlockAnswers:
        """Turn the outputs of texts, `(texts, …)`, into their answers, like `finish`."""
        raise NotImplementedError

    # --- in the device process ---

    def adapt(self, network: Any) -> None:
        """Change the loaded network before its first pass."""

    @abstractmethod
    def compute(self, output: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Turn the network's output into a row per sequence, or with `by_token` into `(sequences, tokens, …)`."""


def too_long(tokens: int, most: int) -> InputTooLarge:
    return InputTooLarge(
        "input", f"has {tokens:,} tokens, over {most}", "split the text, or set `truncation` to cut it"
    )


def softmax(scores: Array) -> Array:
    """Return the softmax over the last axis."""
    exponents = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=-1, keepdims=True))


def sigmoid(scores: Array) -> Array:
    """Return the sigmoid of each value, without overflow for large negative values."""
    return np.asarray(np.exp(-np.logaddexp(0, -scores)))


def best_labels(labels: tuple[str, ...], scores: Array, top_k: int | None) -> list[dict[str, Any]]:
    """Return the `top_k` labels (None: all), best first. Equal scores keep the labels' order."""
    best = np.argsort(-scores, kind="stable")[:top_k]
    return [{"label": labels[n], "score": rounded(scores[n])} for n in best]


def rounded(score: Any) -> float:
    return round(float(score), SCORE_DIGITS)
