"""Selectors: the part of a step's output that becomes the next step's input. They are named; no code travels.

A selector reads the content of an output from its kind's type, so a new kind with a text or boxes needs no change here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import msgspec

from producers.wire.errors import InvalidInput
from producers.wire.forms import Modality
from producers.wire.kinds import Kind
from producers.wire.messages import Input, Message, MessagesInput, QuestionInput
from results_store.sql.item_numbering import MAX_PARTS

#: The fields that may hold an output's text; the first of these that it has counts.
_TEXTS = ("text", "label", "answer", "word", "sequence")

#: The fields that may hold a part's label, for the choice by label.
_LABELS = ("label", "entity_group", "entity")

#: The content that a selector needs in an output.
Reads = Literal["text", "box", "anything"]

#: How a selector changes the number of items: one from one, one from each part of an output, one from several steps, or
#: one from all parts.
Shape = Literal["one", "each", "join", "gather"]


class Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Keep only parts with a score of at least `min_score` and, if `labels` are given, with a label among them.

    A selector that makes a single item looks at the best part only.
    """

    min_score: float = 0.0
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1:
            raise ValueError("`min_score` must be between 0 and 1")


class TextOptions(Choice, frozen=True, forbid_unknown_fields=True):
    """Also: `template` has ``{}`` in the place of the text."""

    template: str = "{}"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_template(self.template)


class CropOptions(Choice, frozen=True, forbid_unknown_fields=True):
    """Also: `margin` is added at each side, as a share of the box's own size."""

    margin: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.margin <= 1:
            raise ValueError("`margin` must be between 0 and 1")


class JoinOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`separator` stands between the texts; `template` has ``{}`` in their place."""

    separator: str = " "
    template: str = "{}"

    def __post_init__(self) -> None:
        _check_template(self.template)


class QuestionOptions(Choice, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Also: `question` is asked about the text."""

    question: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.question.strip():
            raise ValueError("`question` must not be empty")


class PromptOptions(Choice, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Also: `template` has ``{texts}`` in place of the texts, numbered from [1], and ``{input}`` for the step's input.

    `system` is the system message for the model.
    """

    template: str
    system: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(self.template.count(place) != 1 for place in ("{texts}", "{input}")):
            raise ValueError("`template` must contain {texts} and {input} once each")


def _check_template(template: str) -> None:
    if template.count("{}") != 1:
        raise ValueError("`template` must contain {} once, in the place of the text")


@dataclass(frozen=True, slots=True)
class Selector:
    """A selector. `gives` is the form of the input that it makes; None passes on the input of the step before.

    `original`: the selector also reads the input of the step before, not only its output. `form` is the form that this
    input must have.
    """

    name: str
    reads: Reads
    gives: Modality | None
    shape: Shape
    options: type[msgspec.Struct]
    summary: str
    original: bool = False
    form: Modality | None = None


SELECTORS: Mapping[str, Selector] = {
    selector.name: selector
    for selector in (
        Selector("text", "text", "text", "one", TextOptions, "the text, or the best label, answer or word"),
        Selector("each", "text", "text", "each", TextOptions, "one text for each part of a list: label, answer, word"),
        Selector("join", "text", "text", "join", JoinOptions, "the texts of several steps as one"),
        Selector("gather", "text", "text", "gather", JoinOptions, "the texts of all parts as one"),
        Selector("question", "text", "question", "one", QuestionOptions, "a question about the text"),
        Selector(
            "prompt",
            "text",
            "prompt",
            "one",
            PromptOptions,
            "a prompt with the step's input and texts for it",
            original=True,
            form="text",
        ),
        Selector("crop", "box", "image", "each", CropOptions, "the image within each box", original=True),
        Selector("input", "anything", None, "one", Choice, "the input of the step before", original=True),
    )
}


def text_field(kind: Kind) -> str | None:
    """Return the text field of a kind's output, or of its parts."""
    fields = _fields(kind)
    return next((name for name in _TEXTS if name in fields), None)


def reads(selector: Selector, kind: Kind) -> bool:
    """Return whether a selector can read the outputs of a kind."""
    match selector.reads:
        case "text":
            listed = get_origin(kind.output) is list
            return text_field(kind) is not None and (listed or selector.shape != "each")
        case "box":
            return "box" in _fields(kind)
        case "anything":
            return True


def _fields(kind: Kind) -> tuple[str, ...]:
    """Return the fields of an output, or of the members of a list."""
    output = get_args(kind.output)[0] if get_origin(kind.output) is list else kind.output
    return output.__struct_fields__ if isinstance(output, type) and issubclass(output, msgspec.Struct) else ()


def checked_options(selector: Selector, options: Mapping[str, Any], field: str) -> msgspec.Struct:
    """Return a selector's options, typed. Raises InvalidInput naming the option."""
    try:
        return msgspec.convert(dict(options), selector.options)
    except msgspec.ValidationError as error:
        known = ", ".join(selector.options.__struct_fields__)
        raise InvalidInput(field, str(error), f"options of {selector.name!r}: {known}") from error


def chosen(selector: Selector, output: Any, options: Mapping[str, Any]) -> list[int]:
    """Return the indexes of the parts of an output that make an item each; [0] for an item from the whole output."""
    own = msgspec.convert(dict(options), selector.options)
    parts = list(_parts(output))
    if selector.shape != "each":
        parts = parts[:1]
    if not parts and selector.reads == "anything":
        return [0] if not isinstance(own, Choice) or not (own.labels or own.min_score) else []
    return [number for number, part in enumerate(parts[:MAX_PARTS]) if _is_chosen(selector, part, own)]


def _is_chosen(selector: Selector, part: Any, options: msgspec.Struct) -> bool:
    if selector.reads == "text" and not text_in(part).strip():
        return False
    if not isinstance(options, Choice):
        return True
    found = part if isinstance(part, Mapping) else {}
    score = found.get("score")
    if options.min_score and not (isinstance(score, int | float) and score >= options.min_score):
        return False
    return not options.labels or next((found[name] for name in _LABELS if found.get(name)), None) in options.labels


def derived(selector: Selector, outputs: Sequence[Any], part: int | None, options: Mapping[str, Any]) -> Input:
    """Return the input that a selector of texts makes from outputs."""
    own = msgspec.convert(dict(options), selector.options)
    if isinstance(own, JoinOptions):
        texts = (text_in(next(_parts(output), "")) for output in outputs)
        return own.template.replace("{}", own.separator.join(text for text in texts if text.strip()))
    found = text_in(list(_parts(outputs[0]))[part or 0])
    if isinstance(own, QuestionOptions):
        return QuestionInput(own.question, found)
    assert isinstance(own, TextOptions), f"{selector.name} makes no text"
    return own.template.replace("{}", found)


def prompted(output: Any, original: str, options: PromptOptions) -> MessagesInput:
    """Return the messages for a generating model: an input and the chosen texts of an output, in the template."""
    texts = [text_in(part) for part in _parts(output) if _is_chosen(SELECTORS["prompt"], part, options)]
    numbered = "\n".join(f"[{number}] {text}" for number, text in enumerate(texts, 1))
    # in one substitution, so that braces in a text or in the input stay as they are
    prompt = re.sub(r"\{(texts|input)\}", lambda place: numbered if place[1] == "texts" else original, options.template)
    system = [Message("system", options.system)] if options.system else []
    return MessagesInput((*system, Message("user", prompt)))


def text_in(part: Any) -> str:
    """Return the text of an output or of a part of it; empty if it has none."""
    if isinstance(part, Mapping):
        part = next((part[name] for name in _TEXTS if name in part), "")
    return part if isinstance(part, str) else ""


def _parts(output: Any) -> Iterator[Any]:
    """Yield the members of a list, or any other output itself."""
    if isinstance(output, list | tuple):
        yield from output
    elif output is not None:
        yield output
