"""The kinds of generating models: free text, and tasks whose prompt is answered by a label or by JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from producers.wire.kinds.kind import Kind, Labels, at_least

#: The place of the input in a prompt.
PLACE = "{input}"

#: The most labels that can be compared with each other.
MOST_LABELS = 100

_MOST_STOPS = 16
_LONGEST_STOP_CHARS = 200
_LONGEST_PROMPT_CHARS = 100_000
_LONGEST_LABEL_CHARS = 2000

#: The most bytes and levels of a JSON schema.
_MOST_SCHEMA_BYTES = 65_536
_MOST_SCHEMA_LEVELS = 64

#: The most patterns of a schema that combines parts: the time for patterns of the same text doubles with each.
_MOST_COMBINED_PATTERNS = 8

#: The largest whole number of a parameter.
_MOST = 2**31 - 1


class TextGenerationParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters of text generation.

    The model generates up to `max_new_tokens` tokens (null: as many as fit, 256 at most), or up to a `stop` string,
    which is left out. `temperature` 0 takes the likeliest token each time. Over 0, tokens are sampled from the `top_k`
    likeliest (0: all) and the likeliest that make up `top_p` of the probability; the same `seed` gives the same tokens.
    A `repetition_penalty` over 1 makes earlier tokens less likely (null: as the checkpoint says, else 1). A text is
    continued as it is; with `as_message` it is sent as the user's message. `stream` publishes each piece of text while
    the model writes.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    as_message: bool = False
    stream: bool = False

    def __post_init__(self) -> None:
        at_least("max_new_tokens", self.max_new_tokens)
        at_least("top_k", self.top_k, 0)
        at_least("seed", self.seed, 0)
        if self.top_k > _MOST or (self.max_new_tokens or 0) > _MOST:
            raise ValueError(f"`top_k` and `max_new_tokens` must be {_MOST} at most")
        if not 0 <= self.temperature <= 100:
            raise ValueError("`temperature` must be between 0 and 100")
        if not 0 < self.top_p <= 1:
            raise ValueError("`top_p` must be over 0 and at most 1")
        if self.repetition_penalty is not None and not 0.01 <= self.repetition_penalty <= 100:
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
        if not 2 <= len(self.labels) <= MOST_LABELS or any(
            not label.strip() or len(label) > _LONGEST_LABEL_CHARS for label in self.labels
        ):
            raise ValueError(f"`labels` must be 2 to {MOST_LABELS} texts of up to {_LONGEST_LABEL_CHARS:,} characters")
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
        _check_schema(self.schema)
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
    if len(prompt) > _LONGEST_PROMPT_CHARS:
        raise ValueError(f"`prompt` must have at most {_LONGEST_PROMPT_CHARS:,} characters")


def _check_schema(schema: dict[str, Any]) -> None:
    level: list[Any] = [schema]
    patterns, combined = 0, False
    for _ in range(_MOST_SCHEMA_LEVELS):
        parts = [part for part in level if isinstance(part, dict)]
        patterns += sum("pattern" in part for part in parts)
        patterns += sum(len(own) for part in parts if isinstance(own := part.get("patternProperties"), dict))
        combined |= any("allOf" in part or "$ref" in part for part in parts)
        level = [inner for value in level if isinstance(value, dict | list) for inner in _inner(value)]
    if level or len(msgspec.json.encode(schema)) > _MOST_SCHEMA_BYTES:
        raise ValueError(f"`schema` must have at most {_MOST_SCHEMA_BYTES:,} bytes and {_MOST_SCHEMA_LEVELS} levels")
    if combined and patterns > _MOST_COMBINED_PATTERNS:
        raise ValueError(f"`schema` with `allOf` or `$ref` must have at most {_MOST_COMBINED_PATTERNS} patterns")


def _inner(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


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
