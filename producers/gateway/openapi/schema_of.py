"""JSON Schemas of typed bodies and answers, for OpenAPI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


def schema_of(kind: Any) -> dict[str, Any]:
    """Return the JSON Schema of a type, with the schemas of its parts in their places.

    An object may have unknown fields that are null: they ask for nothing.
    """
    (found,), parts = msgspec.json.schema_components([kind], ref_template="{name}")

    def whole(node: Any) -> Any:
        if isinstance(node, list):
            return [whole(inner) for inner in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return whole(parts[node["$ref"]])
        inner = {name: whole(value) for name, value in node.items()}
        return (
            inner | {"additionalProperties": {"type": "null"}} if node.get("additionalProperties") is False else inner
        )

    schema: dict[str, Any] = whole(found)
    return schema


def object_of(properties: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the JSON Schema of an object with these properties."""
    return {"type": "object", "properties": {**properties, **(optional or {})}, "required": list(properties)}


#: The JSON Schema of a server-sent event.
EVENT = object_of({"data": {"type": "string"}}, {"event": {"type": "string"}})


def answer_of(*kinds: Any, status: int = 200, also: Mapping[str, Any] | None = None) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI's description of a JSON answer of one of the `kinds`, which are types or JSON Schemas.

    `also` has further media types, with their schemas.
    """
    schemas = [kind if isinstance(kind, dict) else schema_of(kind) for kind in kinds]
    content: dict[str, Any] = {"application/json": {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}}
    content |= {name: {"schema": schema} for name, schema in (also or {}).items()}
    return {status: {"content": content}}
