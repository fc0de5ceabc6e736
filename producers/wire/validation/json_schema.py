"""Checks a JSON value: its numbers, its keys, and the JSON Schema of a type.

`msgspec.json.schema` makes all schemas here from a class's types, so that this module knows its keywords and no others:
a client checks an input without importing the class. Formats and patterns are left to the worker, which has the class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

#: A place within the value, such as ``rooms[2].area``, and the problem there.
Fault = tuple[str, str]

_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list | tuple),
    "object": lambda value: isinstance(value, dict),
}

_BOUNDS: Mapping[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "minimum": ("{} or more", lambda value, bound: value >= bound),
    "maximum": ("{} or less", lambda value, bound: value <= bound),
    "exclusiveMinimum": ("over {}", lambda value, bound: value > bound),
    "exclusiveMaximum": ("under {}", lambda value, bound: value < bound),
    "multipleOf": ("a multiple of {}", lambda value, bound: value % bound == 0),
    "minLength": ("of {} characters or more", lambda value, bound: len(value) >= bound),
    "maxLength": ("of {} characters or fewer", lambda value, bound: len(value) <= bound),
    "minItems": ("of {} entries or more", lambda value, bound: len(value) >= bound),
    "maxItems": ("of {} entries or fewer", lambda value, bound: len(value) <= bound),
    "minProperties": ("of {} fields or more", lambda value, bound: len(value) >= bound),
    "maxProperties": ("of {} fields or fewer", lambda value, bound: len(value) <= bound),
}


def not_json(value: object, place: str = "") -> Iterator[Fault]:
    """Yield the numbers that are not finite, and the keys that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        yield place, f"is {value}, not a finite number"
    elif isinstance(value, dict):
        for key, own in value.items():
            if not isinstance(key, str | int) and not (isinstance(key, float) and math.isfinite(key)):
                yield place, f"has the key {key!r:.80}; JSON has texts as keys"
            yield from not_json(own, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        for number, own in enumerate(value):
            yield from not_json(own, f"{place}[{number}]")


def within(field: str, place: str) -> str:
    """Return the path of a place within a field."""
    return field + place if not place or place.startswith("[") else f"{field}.{place}"


def mismatches(schema: Mapping[str, Any], value: object) -> Iterator[Fault]:
    """Yield the places at which a JSON value does not have the form of a schema, with the problem there."""
    return _mismatches(schema, value, "", schema.get("$defs", {}))


def _mismatches(schema: Mapping[str, Any], value: Any, place: str, defs: Mapping[str, Any]) -> Iterator[Fault]:
    if "$ref" in schema:
        schema = defs[schema["$ref"].removeprefix("#/$defs/")]
    if "anyOf" in schema:
        found = [[*_mismatches(one, value, place, defs)] for one in schema["anyOf"]]
        if all(found):  # the form that fits best names the deepest fault
            yield from max(found, key=lambda faults: len(faults[0][0]))
    elif not _has_type(schema, value):
        yield place, f"must be {_named(schema)}, not {_of(value)}"
    elif not any(value == one and type(value) is type(one) for one in schema.get("enum", [schema.get("const", value)])):
        yield place, f"must be {_named(schema)}, not {value!r:.80}"
    else:
        yield from _bounds(schema, value, place)
        if isinstance(value, dict):
            yield from _of_object(schema, value, place, defs)
        elif isinstance(value, list | tuple):
            yield from _of_array(schema, value, place, defs)


def _has_type(schema: Mapping[str, Any], value: object) -> bool:
    wanted = schema.get("type")
    if wanted is None:
        return True
    return any(_TYPES[one](value) for one in ([wanted] if isinstance(wanted, str) else wanted))


def _bounds(schema: Mapping[str, Any], value: Any, place: str) -> Iterator[Fault]:
    for name, (words, holds) in _BOUNDS.items():
        if name in schema and not holds(value, schema[name]):
            yield place, f"must be {words.format(schema[name])}"


def _of_object(
    schema: Mapping[str, Any], value: Mapping[str, Any], place: str, defs: Mapping[str, Any]
) -> Iterator[Fault]:
    fields, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{place}.{name}".lstrip("."), "is missing"
    for name, own in value.items():
        where = f"{place}.{name}".lstrip(".")
        if name in fields:
            yield from _mismatches(fields[name], own, where, defs)
        elif others is False:
            yield where, f"is not a field; there are {', '.join(fields)}"
        elif isinstance(others, Mapping):
            yield from _mismatches(others, own, where, defs)


def _of_array(schema: Mapping[str, Any], value: Any, place: str, defs: Mapping[str, Any]) -> Iterator[Fault]:
    first, others = schema.get("prefixItems", ()), schema.get("items", True)
    for number, own in enumerate(value):
        wanted = first[number] if number < len(first) else others
        if isinstance(wanted, Mapping):
            yield from _mismatches(wanted, own, f"{place}[{number}]", defs)


def _named(schema: Mapping[str, Any]) -> str:
    if "enum" in schema or "const" in schema:
        return " or ".join(repr(one) for one in schema.get("enum", [schema.get("const")]))
    wanted = schema["type"]
    return wanted if isinstance(wanted, str) else " or ".join(wanted)


def _of(value: object) -> str:
    return next((name for name, fits in _TYPES.items() if fits(value)), type(value).__name__)
