"""The kinds of a model that writes: free text, and tasks that are prompts with a label or JSON for an answer."""

from __future__ import annotations

from typing import Any

import msgspec

from producers.wire.kinds.kind import Kind, Labels, at_least

#: Where the input goes in a prompt.
PLACE = "{input}"

#: So many labels may be weighed against each other.
MOST_LABELS = 100

_MOST_STOPS = 16
_LONGEST_STOP_CHARS = 200


class TextGenerationParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Up to `max_new_tokens` tokens (null: as many as the model has room for, 256 at most), or to one of the `stop` strings, which is left out. A `temperature` of 0 takes the
    likeliest token each time; over it tokens are drawn, of the `top_k` likeliest (0: of all), of those that make up `top_p` of the
    probability, with a `seed` always the same ones. `repetition_penalty` over 1 makes what was there less likely. A text is
    continued as it is; with `as_message` it is what a user says, as in a list of messages. `stream` tells who listens of
    each piece."""

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    as_message: bool = False
    stream: bool = False

    def __post_init__(self) -> None:
        at_least("max_new_tokens", self.max_new_tokens)
        at_least("top_k", self.top_k, 0)
        at_least("seed", self.seed, 0)
        if not 0 <= self.temperature <= 100:
            raise ValueError("`temperature` must be between 0 and 100")
        if not 0 < self.top_p <= 1:
            raise ValueError("`top_p` must be over 0, and 1 at most")
        if not 0.01 <= self.repetition_penalty <= 100:
            raise ValueError("`repetition_penalty` must be between 0.01 and 100")
        if self.seed is not None and self.seed >= 2**63:
            raise ValueError("`seed` must be less than 2 to the power of 63")
        if len(self.stop) > _MOST_STOPS or any(not 0 < len(stop) <= _LONGEST_STOP_CHARS for stop in self.stop):
            raise ValueError(f"`stop` must be at most {_MOST_STOPS} texts of 1 to {_LONGEST_STOP_CHARS} characters")


class PromptedClassificationParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which of `labels` answers the `prompt` best, in which ``{input}`` is the text. The scores are the labels' likelihoods
    in proportion, adding up to 1; `top_k` of them are returned, best first (null: all)."""

    prompt: str
    labels: tuple[str, ...]
    top_k: int | None = 1

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        at_least("top_k", self.top_k)
        if not 2 <= len(self.labels) <= MOST_LABELS or any(not label.strip() for label in self.labels):
            raise ValueError(f"`labels` must be 2 to {MOST_LABELS} texts")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("`labels` must not name a label twice")


class PromptedJsonParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What answers the `prompt`, in which ``{input}`` is the text, as JSON of a `schema` (JSON Schema), of at most
    `max_new_tokens` tokens (null: as for text generation). The schema should bound texts and lists by ``maxLength`` and ``maxItems``."""

    prompt: str
    schema: dict[str, Any]
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        at_least("max_new_tokens", self.max_new_tokens)


class GeneratedText(msgspec.Struct, frozen=True):
    """The text, and why it ends: `stop` (the model ended it, or a stop string) or `length`. Of the prompt's tokens,
    `cached_tokens` were known from an earlier prompt that began alike."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


def _check_prompt(prompt: str) -> None:
    if prompt.count(PLACE) != 1:
        raise ValueError(f"`prompt` must have {PLACE} once, where the text goes in")


GENERATION_KINDS = (
    Kind("text-generation", "prompt", TextGenerationParams, GeneratedText, "what follows a text, or answers messages"),
    Kind(
        "prompted-classification", "text", PromptedClassificationParams, Labels, "which of your labels answers a prompt"
    ),
    Kind("prompted-json", "text", PromptedJsonParams, Any, "JSON of your schema that answers a prompt"),
)
