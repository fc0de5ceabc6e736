"""Descriptions of the kinds, for people who write a model's class: the input, the argument of `prepare`, the answer."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Any, Union, get_args, get_origin

import msgspec

from producers.wire.forms import Modality
from producers.wire.kinds import KINDS
from producers.wire.kinds.custom import CUSTOM

_FILE = "the bytes of a file, a path or a URL"

#: For each form of input: a client's value, and the argument of `prepare`.
FORMS: Mapping[Modality, tuple[str, str]] = {
    "text": ("a text", "str"),
    "prompt": ("a text, or messages", "str, or MessagesInput"),
    "image": (_FILE, "bytes"),
    "audio": (_FILE, "bytes"),
    "video": (_FILE, "bytes"),
    "question": ("an object: question, context", "QuestionInput"),
    "sentences": ("an object: source_sentence, sentences", "SentencesInput"),
    "row": ("an object of columns, or a list of numbers", "RowInput: .values, by column"),
    "series": ("lists of numbers", "SeriesInput: .channels, .names"),
    "seed": ("an integer", "SeedInput: .seed"),
    "text-and-image": ("an object: text, image", "TextAndImageInput: .text, .image.data"),
    "json": ("JSON", "the class's input_type"),
}


def described() -> Iterator[tuple[str, str, str, str, str]]:
    """Yield each kind's name, input, argument of `prepare`, parameters and answer."""
    for kind in KINDS.values():
        given, prepared = FORMS[kind.modality]
        answer = "the class's output_type" if kind is CUSTOM else _form(kind.output)
        yield kind.name, given, prepared, ", ".join(kind.params.__struct_fields__), answer


def _form(type_: Any) -> str:
    """Return a type in words: ``list of {label, score}``."""
    if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
        fields = msgspec.structs.fields(type_)
        return "{" + ", ".join(field.name if field.required else f"{field.name}?" for field in fields) + "}"
    if get_origin(type_) in (Union, types.UnionType):
        return " or ".join(map(_form, get_args(type_)))
    if get_origin(type_) is list:
        [inner] = get_args(type_)
        return "vector (float32), or list of numbers" if inner is float else f"list of {_form(inner)}"
    if get_origin(type_) is dict:
        return "object of numbers by name"
    return {float: "number", Any: "JSON"}.get(type_, str(type_))
