"""Bodies of OpenAI's requests: read, checked by their types, and described to OpenAPI by the same types."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any, Final, TypeVar

import msgspec
from fastapi import Request

from producers.gateway.openapi.schema_of import schema_of
from producers.gateway.problems import Problem
from producers.wire.errors import InvalidInput

T = TypeVar("T", bound=msgspec.Struct)

#: Values that ask for nothing, by the name of a parameter that is not served here.
Unserved = Mapping[str, tuple[Any, ...]]

#: What a form may have: a file, which is on a disk while it is read, and few fields.
FORM_LIMITS: Final[Any] = {"max_files": 1, "max_fields": 20}

#: The most characters of a name or a value that an error repeats.
_SHOWN: Final = 200

_PLACE: Final = re.compile(r"(?P<problem>.*?)(?: - at `(?:key` in `)?\$(?P<place>[^`]*)`)?", re.DOTALL)
_FIELD: Final = re.compile(r"Object (?P<fault>missing required|contains unknown) field `(?P<name>.*)`", re.DOTALL)


async def json_body(request: Request) -> dict[str, Any]:
    """Return the JSON object of a request's body. Raises Problem, or InvalidInput if the body is another value."""
    sent = request.headers.get("content-type", "no content-type")
    media_type = sent.partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise Problem(415, "UnsupportedMediaType", f"the body must be application/json, not {sent}")
    try:
        value = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise Problem(400, "InvalidJson", f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidInput("body", f"must be a JSON object, not {type(value).__name__}")
    return value


async def check_form(request: Request) -> None:
    """Raise InvalidInput for a field that a form has twice: all values but the last would be dropped."""
    seen = set[str]()
    for name, _ in (await request.form()).multi_items():
        if name in seen and not name.endswith("[]"):
            raise InvalidInput(name, "occurs twice in the form", "send one of them")
        seen.add(name)


def read_body(kind: type[T], given: Mapping[str, Any], unserved: Unserved | None = None) -> T:
    """Return a body as its type. Null is the same as a parameter that is left out.

    Raises InvalidInput, naming the parameter, also for one that is unknown or `unserved`.
    """
    try:
        served = without_unserved(without_nulls(given), unserved or {})
    except RecursionError as error:
        raise InvalidInput("body", "has lists and objects within each other too many times") from error
    try:
        return msgspec.convert(served, kind)
    except msgspec.ValidationError as error:
        raise _invalid(error, kind.__struct_fields__) from error


def without_nulls(value: Any) -> Any:
    """Return a JSON value without the fields that are null, also in its parts."""
    if isinstance(value, dict):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def without_unserved(given: Mapping[str, Any], unserved: Unserved, place: str = "") -> dict[str, Any]:
    """Return the other fields of an object. Raises InvalidInput for one whose value asks for something."""
    for name, nothing in unserved.items():
        if name in given and not any(_same(given[name], value) for value in nothing):
            raise InvalidInput(f"{place}{name}", "is not available here", "leave it out")
    return {name: value for name, value in given.items() if name not in unserved}


def described_body(kind: type[msgspec.Struct], example: Any, unserved: Unserved | None = None) -> dict[str, Any]:
    """Return OpenAPI's description of a request with this body."""
    schema = schema_of(kind)
    schema["properties"] |= {name: unserved_schema(nothing) for name, nothing in (unserved or {}).items()}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}}


def unserved_schema(nothing: Collection[Any]) -> dict[str, Any]:
    """Return the JSON Schema of a parameter that is not served here."""
    return {"enum": [*nothing, None], "description": "Not available here."}


def _same(given: object, value: object) -> bool:
    return given == value and isinstance(given, bool) == isinstance(value, bool)


def _invalid(error: msgspec.ValidationError, known: Collection[str]) -> InvalidInput:
    found = _PLACE.fullmatch(str(error))
    assert found is not None, "the pattern matches any text"
    place, problem = (found["place"] or "").removeprefix("."), found["problem"]
    if field := _FIELD.fullmatch(problem):
        where = f"{place}.{field['name']}".removeprefix(".")[:_SHOWN]
        if field["fault"] == "missing required":
            return InvalidInput(where, "is missing")
        remedy = "leave it out" if place else f"leave it out; the parameters are: {', '.join(known)}"
        return InvalidInput(where, "is not a parameter here", remedy)
    problem = (
        problem.replace("`", "").replace(" | null", "").replace("Expected", "must be", 1).replace(" got ", " not ")
    )
    problem = problem.replace("Invalid enum value", "must not be")[:_SHOWN]
    return InvalidInput(place[:_SHOWN] or "body", problem, "see /openapi.json")
