"""/v1/embeddings: vectors for texts."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr
from starlette.responses import Response

from producers.client.handles import value
from producers.client.request import NewItem
from producers.gateway.answers import Json
from producers.gateway.gateway import Here, Who
from producers.gateway.openai.endpoint_calls import Call, answered, task_of
from producers.gateway.schemas import Listed
from producers.wire.catalogue import Catalogue
from producers.wire.errors import InvalidInput
from results_store.records import Result
from results_store.sql.columns import pack_vector

router = APIRouter(prefix="/v1/embeddings", tags=["openai"])

#: OpenAI's limit for a request.
MAX_INPUTS = 2048


class EmbeddingsBody(BaseModel):
    """Fields of OpenAI's API without an effect here, such as `user`, are ignored."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "embedding", "input": ["A fine, moving film."]}]}
    )

    model: StrictStr
    input: StrictStr | Listed[StrictStr] | Listed[StrictInt] | Listed[Listed[StrictInt]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, description="The vector's first numbers, scaled to length 1.")


@router.post("")
async def embeddings(request: Request, body: EmbeddingsBody, gateway: Here, caller: Who) -> Response:
    """Return a vector for each text. Token ids are refused, because each model has its own."""
    call = plan(await gateway.client.catalogue(), body.model_dump())
    return Json(await answered(request, gateway, caller, call))


def plan(catalogue: Catalogue, body: Mapping[str, Any]) -> Call:
    """Return the call of a request's body. Raises InvalidInput, or Problem for an unknown model."""
    task = task_of(catalogue, body.get("model"), "feature-extraction")
    texts = _texts(body.get("input"))
    form = body.get("encoding_format") or "float"
    if form not in ("float", "base64"):
        raise InvalidInput("encoding_format", f"must be float or base64, not {form!r}")
    dimensions = body.get("dimensions")
    if dimensions is not None and (not isinstance(dimensions, int) or isinstance(dimensions, bool) or dimensions < 1):
        raise InvalidInput("dimensions", f"must be a number over 0, not {dimensions!r}")

    given = {"encoding_format": body.get("encoding_format"), "dimensions": dimensions}
    options: dict[str, Any] = {name: option for name, option in given.items() if option is not None}
    return Call(task.name, [NewItem(text) for text in texts], partial(shape, task.name, **options), options)


def shape(
    task: str, rows: Sequence[Result], *, encoding_format: str = "float", dimensions: int | None = None
) -> dict[str, Any]:
    """Return the answer's body."""
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(row, encoding_format, dimensions)}
        for index, row in enumerate(rows)
    ]
    tokens = sum(row.tokens or 0 for row in rows)
    return {
        "object": "list",
        "data": data,
        "model": task,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _texts(given: object) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise InvalidInput("input", "must be a text or several", "send a string or a list of strings")
    if all(isinstance(text, int | list) for text in texts):
        raise InvalidInput("input", "has token ids, but each model has its own", "send text")
    if len(texts) > MAX_INPUTS:
        raise InvalidInput(
            "input", f"has {len(texts):,} texts, over {MAX_INPUTS:,}", "send several requests, or a batch"
        )
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidInput(f"input[{place}]", f"must be text, not {type(text).__name__}")
    return list(texts)


def _vector(row: Result, form: str, dimensions: int | None) -> list[float] | str:
    numbers: list[float] = value(row)
    if dimensions is not None:
        if dimensions > len(numbers):
            raise InvalidInput("dimensions", f"is {dimensions}, over the model's {len(numbers)}")
        numbers = _scaled(numbers[:dimensions])
    elif form == "base64" and row.vector is not None:
        return base64.b64encode(row.vector).decode()
    return numbers if form == "float" else base64.b64encode(pack_vector(numbers)).decode()


def _scaled(numbers: list[float]) -> list[float]:
    length = math.sqrt(sum(number * number for number in numbers)) or 1.0
    return [number / length for number in numbers]
