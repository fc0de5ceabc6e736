"""A model's options, the table `[models.NAME.options]`: a struct, decoded when the model is built.

A wrong option is an error at the worker's start that lists the options of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_args

import msgspec
from msgspec import Meta

from producers.wire.errors import ConfigurationError

# the names of the previous form, for one release
from workers.models.interface.option_table import COUNT, OVER_ZERO, TABLE, TEXT, Option, check, unknown, whole

__all__ = [
    "COUNT", "OVER_ZERO", "TABLE", "TEXT", "Amount", "Count", "Option", "Options", "Positive", "Table", "Text",
    "check", "decode", "described", "whole",
]  # fmt: skip

_Options = TypeVar("_Options", bound=msgspec.Struct)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a model class, with defaults. Derive a struct for a derived class from the struct of its base."""


# errors quote the `description` as the condition on the value

#: A whole number, 1 or more.
Count = Annotated[int, Meta(ge=1, description=COUNT.must_be)]

#: A whole number, 0 or more.
Amount = Annotated[int, Meta(ge=0, description=whole(0).must_be)]

#: A number over 0.
Positive = Annotated[float, Meta(gt=0, description=OVER_ZERO.must_be)]

#: A name, or the path of a folder. The model itself checks that the folder exists.
Text = Annotated[str, Meta(description=TEXT.must_be)]

#: A text (as a rule the path of a folder) for each task, or for each model used.
Table = Annotated[dict[str, str], Meta(description="a table of names and texts")]


def decode(type_: type[_Options], given: Mapping[str, Any], *, where: str) -> _Options:
    """Decode options into the struct `type_`. `where` is the model's table, ``models.NAME``.

    Raises ConfigurationError for an unknown option (most likely misspelt), a wrong value, and a missing option without
    a default.
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
    """Return the `description` in an annotation's `Meta`, or an empty string."""
    for part in (type_, *get_args(type_)):
        for meta in getattr(part, "__metadata__", ()):
            if isinstance(meta, Meta) and meta.description:
                return meta.description
    return ""
