"""/v1/embeddings: vectors for texts."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Request
from msgspec import Meta
from starlette.responses import Response

from producers.client.request import NewItem
from producers.gateway.answers import Json
from producers.gateway.gateway import Detokenizer, Here, Member
from producers.gateway.openai.endpoint_calls import Call, Names, answered, checked, output_of, task_of
from producers.gateway.openai.openai_answers import EmbeddingList
from producers.gateway.openai.request_bodies import described_body, json_body, read_body
from producers.gateway.openapi.schema_of import answer_of
from producers.wire.catalogue import Catalogue
from producers.wire.errors import ConfigurationError, InvalidInput
from results_store.records import Result
from results_store.sql.columns import pack_vector

router = APIRouter(prefix="/v1/embeddings", tags=["openai"])

#: OpenAI's limit for a request.
MAX_INPUTS = 2048

#: Token ids are of the tokenizer that made them, and a request does not say which one did.
_TOKENS_REMEDY = (
    "send text; with LangChain, OpenAIEmbeddings(check_embedding_ctx_length=False); the gateway reads token ids if "
    "--embedding-tokenizer names their tokenizer"
)


class EmbeddingsBody(msgspec.Struct, forbid_unknown_fields=True):
    """A request for the vectors of one or several texts."""

    model: str
    input: Annotated[
        str | Annotated[list[str | int | list[int]], Meta(min_length=1, extra_json_schema={"maxItems": MAX_INPUTS})],
        Meta(description="A text or several. Token ids, one list for each text, if the gateway knows their tokenizer."),
    ]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, description="The vector's first numbers, scaled to length 1.")] | None = None
    truncation: Annotated[bool, Meta(description="Cut texts that are too long. Not in OpenAI's API.")] | None = None
    user: Annotated[str, Meta(description="Has no effect.")] | None = None


_EXAMPLE = {"model": "embedding", "input": ["A fine, moving film."]}


@router.post("", openapi_extra=described_body(EmbeddingsBody, _EXAMPLE), responses=answer_of(EmbeddingList))
async def embeddings(request: Request, gateway: Here, caller: Member) -> Response:
    """Return a vector for each text."""
    call = plan(await gateway.client.catalogue(), await json_body(request), gateway.detokenizer)
    return Json(await answered(request, gateway, caller, call))


def plan(catalogue: Catalogue, body: Mapping[str, Any], detokenizer: Detokenizer | None = None) -> Call:
    """Return the call of a request's body. Raises InvalidInput, or Problem for an unknown model or a wrong text."""
    asked = read_body(EmbeddingsBody, body)
    task = task_of(catalogue, asked.model, "feature-extraction")
    texts = _texts(asked.input, detokenizer)
    given = {"encoding_format": asked.encoding_format, "dimensions": asked.dimensions}
    options: dict[str, Any] = {name: option for name, option in given.items() if option is not None}
    params = {"truncation": True} if asked.truncation else None
    items = [NewItem(text, params=params) for text in texts]
    call = Call(task.name, items, partial(shape, task.name, **options), options)
    return checked(catalogue, call, partial(_names, count=len(texts)))


def shape(
    task: str, rows: Sequence[Result], *, encoding_format: str = "float", dimensions: int | None = None
) -> EmbeddingList:
    """Return the answer's body. Raises Problem."""
    tokens = sum(row.tokens or 0 for row in rows)
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": _vector(row, _names(index, len(rows)), encoding_format, dimensions),
            }
            for index, row in enumerate(rows)
        ],
        "model": task,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _names(place: int, count: int) -> Names:
    return {"input": "input" if count == 1 else f"input[{place}]"}


def _texts(given: str | list[str | int | list[int]], detokenizer: Detokenizer | None) -> list[str]:
    if isinstance(given, str):
        return [given]
    if all(isinstance(one, int) for one in given):
        return [_text_of("input", given, detokenizer)]  # type: ignore[arg-type] # all are numbers
    if len(given) > MAX_INPUTS:
        problem = f"has {len(given):,} texts, over {MAX_INPUTS:,}"
        raise InvalidInput("input", problem, "send several requests, or a batch")
    texts = []
    for place, one in enumerate(given):
        if isinstance(one, int):
            raise InvalidInput(f"input[{place}]", "is a number among texts", "send texts only")
        texts.append(one if isinstance(one, str) else _text_of(f"input[{place}]", one, detokenizer))
    return texts


def _text_of(field: str, ids: Sequence[int], detokenizer: Detokenizer | None) -> str:
    if detokenizer is None:
        raise InvalidInput(field, "is token ids, and a request does not say of which tokenizer", _TOKENS_REMEDY)
    try:
        return detokenizer(ids)
    except ValueError as error:
        raise InvalidInput(field, str(error), "send text") from error


def _vector(row: Result, names: Names, form: str, dimensions: int | None) -> list[float] | str:
    numbers: list[float] = output_of(row, names)
    if dimensions is not None:
        if dimensions > len(numbers):
            raise InvalidInput("dimensions", f"is {dimensions}, over the model's {len(numbers)}")
        numbers = _scaled(numbers[:dimensions])
    elif form == "base64" and row.vector is not None:
        return base64.b64encode(row.vector).decode()
    return numbers if form == "float" else base64.b64encode(pack_vector(numbers)).decode()


def detokenizer_of(path: Path) -> Detokenizer:
    """Return the function that makes texts of token ids, by a `tokenizer.json`. Raises ConfigurationError."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ConfigurationError("--embedding-tokenizer needs tokenizers: pip install tokenizers") from error
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        raise ConfigurationError(f"--embedding-tokenizer: {path} is no tokenizer.json: {error}") from error

    def text_of(ids: Sequence[int]) -> str:
        unknown = next((one for one in ids if not 0 <= one < 2**32 or tokenizer.id_to_token(one) is None), None)
        if unknown is not None:
            raise ValueError(f"has the token id {unknown}, which the gateway's tokenizer does not have")
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    return text_of


def _scaled(numbers: list[float]) -> list[float]:
    length = math.sqrt(sum(number * number for number in numbers)) or 1.0
    return [number / length for number in numbers]
