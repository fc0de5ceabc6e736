"""The kinds of generating models: free text, and tasks whose prompt is answered by a label or by JSON."""

from __future__ import annotations

from typing import Any

import msgspec

from producers.wire.kinds.kind import Kind, Labels, at_least

#: The place of the input in a prompt.
PLACE = "{input}"

#: The most labels that can be compared with each other.
MOST_LABELS = 100

_MOST_STOPS = 16
_LONGEST_STOP_CHARS = 200


class TextGenerationParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters of text generation.

    The model generates up to `max_new_tokens` tokens (null: as many as fit, 256 at most), or up to a `stop` string,
    which is left out. `temperature` 0 takes the likeliest token each time. Over 0, tokens are sampled from the `top_k`
    likeliest (0: all) and the likeliest that make up `top_p` of the probability; the same `seed` gives the same tokens.
    A `repetition_penalty` over 1 makes earlier tokens less likely. A text is continued as it is; with `as_message` it
    is sent as the user's message. `stream` publishes each piece of text while the model writes.
    """

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
            raise ValueError("`top_p` must be over 0 and at most 1")
        if not 0.01 <= self.repetition_penalty <= 100:
            raise ValueError("`repetition_penalty` must be between 0.01 and 100")
        if self.seed is not None and self.seed >= 2**63:
            raise ValueError("`seed` must be less than 2 to the power of 63")
        if len(self.stop) > _MOST_STOPS or any(not 0 < len(stop) <= _LONGEST_STOP_CHARS for stop in self.stop):
            raise ValueError(f"`stop` must be at most {_MOST_STOPS} texts of 1 to {_LONGEST_STOP_CHARS} characters")


class PromptedClassificationParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Choose the label that best answers the `prompt`, in which ``{input}`` is the text.

    The scores are the labels' likelihoods, scaled to add up to 1. The `top_k` best are returned (null: all).
    """

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
    """Answer the `prompt`, in which ``{input}`` is the text, with JSON of a `schema` (JSON Schema).

    The answer has at most `max_new_tokens` tokens (null: as for text generation). The schema should bound texts by
    ``maxLength`` and lists by ``maxItems``.
    """

    prompt: str
    schema: dict[str, Any]
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        at_least("max_new_tokens", self.max_new_tokens)


class GeneratedText(msgspec.Struct, frozen=True):
    """The generated text and its token counts.

    `finish_reason` is `stop` (the model ended the text, or a stop string came) or `length`. `cached_tokens` of the
    prompt were known from an earlier prompt with the same beginning.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


def _check_prompt(prompt: str) -> None:
    if prompt.count(PLACE) != 1:
        raise ValueError(f"`prompt` must contain {PLACE} once, in the place of the text")


GENERATION_KINDS = (
    Kind("text-generation", "prompt", TextGenerationParams, GeneratedText, "a text continued, or a dialogue answered"),
    Kind(
        "prompted-classification",
        "text",
        PromptedClassificationParams,
        Labels,
        "the one of your labels that answers a prompt",
    ),
    Kind("prompted-json", "text", PromptedJsonParams, Any, "JSON of your schema that answers a prompt"),
)
