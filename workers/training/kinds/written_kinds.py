"""Texts that a model writes: a text made from a text, and the assistant's messages of a dialogue."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from producers.wire.errors import InvalidInput
from producers.wire.kinds.text import GenerationParams
from producers.wire.messages import Message, MessagesInput
from workers.models.interface.model import Array
from workers.training.kinds.labelled_kind import IGNORED, LabelledKind, Pair, listed

if TYPE_CHECKING:
    import torch


class WrittenKind(LabelledKind):
    """The base of both. A row's targets are its label's tokens, and the loss is a mean over the tokens of a step."""

    #: The most and the least tokens of a label, once the rows are read.
    lengths: tuple[int, int] = (0, 0)

    def targets(self, label: Any, aside: Array) -> Array:
        return aside.reshape(1, -1)

    @property
    def blank(self) -> Array:
        return np.full((1, 1), IGNORED)

    def losses(self, values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """`values` has each token's loss, and whether it is the likeliest: `(examples, 1, tokens, 2)`."""
        return values[:, 0, :, 0].sum(1)

    def terms(self, targets: torch.Tensor) -> torch.Tensor:
        return (targets != IGNORED).sum(1)


class TextToTextKind(WrittenKind):
    """A text made from a text, such as a translation or a summary, by an encoder with a decoder."""

    modality = "text to text"
    served = "text2text-generation"
    label_column = "target"
    metric = "chrf"
    settings = ("prefix",)

    @property
    def params(self) -> GenerationParams:
        return GenerationParams(truncation=True)

    @property
    def options(self) -> Mapping[str, str]:
        return {"prefix": self.table.prefix} if self.table.prefix else {}

    def read_label(self, value: Any, row: Mapping[str, Any], where: str) -> str:
        if not isinstance(value, str):
            raise InvalidInput(where, f"is {type(value).__name__}, not text", "write the text that should come out")
        return value

    def scores(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Return chrF (Popović, 2015; 0 to 1) over all texts, and the share of texts that are the target itself."""
        import sacrebleu

        found, wanted = [answer["text"] for answer, _ in pairs], [wanted for _, wanted in pairs]
        exact = sum(one.strip() == other.strip() for one, other in zip(found, wanted, strict=True))
        return {"chrf": sacrebleu.corpus_chrf(found, [wanted]).score / 100, "exact": exact / len(pairs)}


class DialogueMessage(NamedTuple):
    """A message, and whether it is learnt: those of the assistant are, unless their weight is 0."""

    role: str
    content: str
    is_learnt: bool


class TokenScores(NamedTuple):
    """Of the learnt tokens of a dialogue: the sum of their losses, the likeliest ones, and all."""

    loss: float
    right: int
    tokens: int


class DialogueKind(WrittenKind):
    """The assistant's messages in a dialogue, by a decoder with a chat template.

    A row has a list of messages in OpenAI's form, ``{"role": …, "content": …}``; ``"weight": 0`` keeps a message of the
    assistant from being learnt. The list is input and label.
    """

    modality = "dialogue"
    served = "text-generation"
    input_columns = ("messages",)
    label_column = "messages"
    metric = "token_accuracy"
    defaults: ClassVar[Mapping[str, Any]] = {"sharing": "lora"}

    def __init__(self, name: str, table: Any, where: str) -> None:
        super().__init__(name, table, where)
        if table.label and table.label != self.columns[0]:
            raise InvalidInput(f"{where}.label", "is another column than the input", "leave it out: both are the same")
        self.label_from = self.columns[0]

    def content(self, row: Mapping[str, Any], origin: str) -> MessagesInput:
        """Return the messages before the last one that is learnt."""
        messages = self._messages(row.get(self.label_from), f"{origin}: {self.label_from}")
        last = max(place for place, message in enumerate(messages) if message.is_learnt)
        return MessagesInput(tuple(Message(message.role, message.content) for message in messages[:last]))

    def read_label(self, value: Any, row: Mapping[str, Any], where: str) -> tuple[DialogueMessage, ...]:
        return self._messages(value, where)

    def _messages(self, value: Any, where: str) -> tuple[DialogueMessage, ...]:
        found = tuple(_message(one, f"{where}[{number}]") for number, one in enumerate(listed(value, where)))
        if not any(message.is_learnt for message in found):
            problem = "has no message of the assistant that would be learnt"
            raise InvalidInput(where, problem, "add an answer, or take the row out")
        return found

    def scores(self, pairs: Sequence[Pair]) -> dict[str, float]:
        loss, right, tokens = (sum(own) for own in zip(*(answer for answer, _ in pairs), strict=True))
        return {"token_accuracy": right / tokens, "perplexity": math.exp(min(loss / tokens, 700.0))}


def _message(given: Any, where: str) -> DialogueMessage:
    form = 'write each message as {"role": "user", "content": "…"}'
    if not isinstance(given, dict) or not isinstance(role := given.get("role"), str) or not role:
        raise InvalidInput(where, f"is {str(given)[:60]!r}, not a message", form)
    known = {"role", "content", "name", "weight"}
    if other := sorted(name for name in given if name not in known and given[name] not in (None, [], {})):
        raise InvalidInput(where, f"has {other[0]!r}, which is not trained", "write its content as text")
    content = given.get("content")
    if isinstance(content, list):  # OpenAI's parts
        told = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        texts = [text for text in told if isinstance(text, str)]
        content = "".join(texts) if len(texts) == len(content) else None
    if not isinstance(content, str) or (role == "assistant" and not content.strip()):
        raise InvalidInput(f"{where}.content", "is empty or no text", form)
    weight = given.get("weight", 1)
    if weight not in (None, 0, 1):
        raise InvalidInput(f"{where}.weight", f"is {weight!r}", "it can be 0 or 1")
    return DialogueMessage(role, content, role == "assistant" and weight != 0)


def as_turns(messages: Sequence[DialogueMessage]) -> list[tuple[str, str]]:
    """Return roles and contents, as a chat template reads them."""
    return [(message.role, message.content) for message in messages]


def fitted_lengths(settings: Mapping[str, Any], kinds: Sequence[WrittenKind]) -> dict[str, Any]:
    """Return a checkpoint's settings of generation with limits that every label keeps.

    A checkpoint's own limits are those of the texts that it was trained on before.
    """
    most, least = max(kind.lengths[0] for kind in kinds), min(kind.lengths[1] for kind in kinds)
    found = {name: value for name, value in settings.items() if name != "max_length"}
    before = settings.get("max_new_tokens") or (settings.get("max_length") or 1) - 1
    found["max_new_tokens"] = max(most, before)
    for name in ("min_length", "min_new_tokens"):
        if (found.get(name) or 0) > least:
            del found[name]
    return found
