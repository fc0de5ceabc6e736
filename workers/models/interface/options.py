"""The options of a model, which an operator writes in its table: a struct, decoded once, when the model is built.

A wrong option is named when the worker starts, together with those that exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_args

import msgspec
from msgspec import Meta

from producers.wire.errors import ConfigurationError

# the previous form's words, for one release
from workers.models.interface.option_table import COUNT, OVER_ZERO, TABLE, TEXT, Option, check, unknown, whole

__all__ = [
    "COUNT", "OVER_ZERO", "TABLE", "TEXT", "Amount", "Count", "Option", "Options", "Positive", "Table", "Text",
    "check", "decode", "described", "whole",
]  # fmt: skip

_Options = TypeVar("_Options", bound=msgspec.Struct)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a model's class with their defaults, one field each. A derived class derives its struct from its
    base's.
    """


# a `description` is how an error says what the value must be

#: A whole number, 1 or more.
Count = Annotated[int, Meta(ge=1, description=COUNT.must_be)]

#: A whole number, 0 or more.
Amount = Annotated[int, Meta(ge=0, description=whole(0).must_be)]

#: A number over 0.
Positive = Annotated[float, Meta(gt=0, description=OVER_ZERO.must_be)]

#: A name, or the path of a folder. Whether the folder is there, the model finds out.
Text = Annotated[str, Meta(description=TEXT.must_be)]

#: A text for each task, or for each model used: as a rule the path of a folder.
Table = Annotated[dict[str, str], Meta(description="a table of names and texts")]


def decode(type_: type[_Options], given: Mapping[str, Any], *, where: str) -> _Options:
    """Return the options as `type_` declares them. `where` is the model's table, ``models.NAME``.

    Raises ConfigurationError for an option that `type_` does not have (most likely it is misspelt), for a wrong value,
    and for a missing option that has no default.
    """
    fields = {field.encode_name: field for field in msgspec.structs.fields(type_)}
    decoded: dict[str, Any] = {}
    for name, value in given.items():
        if name not in fields:
            raise unknown(name, fields, where=where)
        try:
            decoded[fields[name].name] = msgspec.convert(value, fields[name].type)
        except msgspec.ValidationError as error:
            must_be = described(fields[name].type) or str(error).removeprefix("Expected ").partition(", got ")[0]
            raise ConfigurationError(f"{where}.options.{name}: must be {must_be}, not {value!r}") from error
    for name, field in fields.items():
        if field.required and name not in given:
            must_be = described(field.type) or "a value"
            raise ConfigurationError(f"{where}.options.{name}: is missing; it must be {must_be}")
    return type_(**decoded)


def described(type_: Any) -> str:
    """Return the `description` in an annotation's `Meta`, or nothing."""
    for part in (type_, *get_args(type_)):
        for meta in getattr(part, "__metadata__", ()):
            if isinstance(meta, Meta) and meta.description:
                return meta.description
    return ""
