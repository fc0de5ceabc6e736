"""/v1/chat/completions: answers of tasks of the kind `text-generation`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from producers.client.request import NewItem
from producers.client.text_streams import AsyncTextStream
from producers.gateway.answers import Events, Json, event
from producers.gateway.gateway import Detokenizer, Gateway, Here, Member, while_there
from producers.gateway.keys import Caller
from producers.gateway.openai import chat_request
from producers.gateway.openai.endpoint_calls import (
    Call,
    Names,
    answered,
    checked,
    named_problem,
    output_of,
    task_of,
)
from producers.gateway.openai.openai_answers import ChatCompletion
from producers.gateway.openai.request_bodies import json_body
from producers.gateway.openapi.schema_of import EVENT, answer_of
from producers.gateway.problems import Problem, openai_error
from producers.wire.catalogue import Catalogue
from producers.wire.errors import InputTooLarge, ItemCancelled, ItemExpired, ItemFailed, StreamRestarted
from producers.wire.messages import new_id
from results_store.records import Result

router = APIRouter(prefix="/v1/chat/completions", tags=["openai"])

KIND = "text-generation"

_STREAM = {"text/event-stream": {**EVENT, "description": "With `stream`: chunks of the answer, then `[DONE]`."}}


@router.post("", openapi_extra=chat_request.DESCRIBED, responses=answer_of(ChatCompletion, also=_STREAM))
async def completions(request: Request, gateway: Here, caller: Member) -> Response:
    """Answer a conversation: in one response, or with `stream` as events."""
    given = await json_body(request)
    call = plan(await gateway.client.catalogue(), given)
    body = chat_request.chat_body(given)
    if not body.stream:
        return Json(await answered(request, gateway, caller, call))
    usage = body.stream_options is not None and body.stream_options.include_usage is True
    # the first piece decides between an error's status and a stream
    stream, pieces, first = await while_there(request, _begun(gateway, caller, call, _names(body.limit)))
    chunks = _chunks(call, stream, pieces, first, _names(body.limit), usage=usage)
    return Events(chunks, ended=lambda: gateway.later(stream.aclose()))


def plan(catalogue: Catalogue, body: Mapping[str, Any], _: Detokenizer | None = None) -> Call:
    """Return the call of a request's body. Raises InvalidInput, or Problem for an unknown model or a long text."""
    asked = chat_request.chat_body(body)
    task = task_of(catalogue, asked.model, KIND)
    try:
        messages = chat_request.messages_of(catalogue, asked.messages)
    except InputTooLarge as error:
        raise named_problem(error, {}) from error
    item = NewItem({"messages": messages}, params=chat_request.params_of(catalogue, task, asked))
    options: dict[str, Any] = {} if asked.max_completion_tokens is None else {"limit": asked.limit}
    call = Call(task.name, [item], partial(shape, task.name, **options), options)
    return checked(catalogue, call, lambda _: _names(asked.limit))


def shape(task: str, rows: Sequence[Result], *, limit: str = "max_tokens") -> ChatCompletion:
    """Return the answer's body. It is the same each time, because a batch's file may be read again."""
    (row,) = rows
    output = output_of(row, _names(limit))
    made, read = output.get("completion_tokens", 0), output.get("prompt_tokens", row.tokens or 0)
    return {
        "id": f"chatcmpl-{row.job}{row.seq}",
        "object": "chat.completion",
        "created": int(row.stored_at or time.time()),
        "model": task,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": output["text"], "refusal": None},
                "finish_reason": output.get("finish_reason", "stop"),
                "logprobs": None,
            }
        ],
        "usage": {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made},
    }


def _names(limit: str) -> Names:
    return {"input.messages": "messages", "input": "messages", "params.max_new_tokens": limit}


async def _begun(
    gateway: Gateway, caller: Caller, call: Call, names: Names
) -> tuple[AsyncTextStream, AsyncIterator[str], str]:
    """Submit a call and return its stream with the first piece. Raises Problem for an error before it."""
    (item,) = call.items
    limit_s = gateway.settings.openai_wait_s
    stream = await gateway.client.stream(
        call.task,
        item.input,
        params=item.params,
        deadline_s=limit_s,
        durable=False,
        tenant=caller.tenant,
    )
    pieces = aiter(stream)  # closes the stream itself if it ends with an error or is cancelled
    try:
        async with asyncio.timeout(limit_s):
            return stream, pieces, await anext(pieces, "")
    except (ItemFailed, ItemExpired, ItemCancelled) as error:
        raise named_problem(error, names) from error
    except TimeoutError:
        raise Problem(504, "Timeout", f"the fleet did not begin within {limit_s:g} s", retry_after_s=5) from None


async def _chunks(
    call: Call, stream: AsyncTextStream, pieces: AsyncIterator[str], first: str, names: Names, *, usage: bool
) -> AsyncIterator[bytes]:
    """Yield an answer as events while it is written. The stream is left open."""
    base = {"id": f"chatcmpl-{new_id()}", "created": int(time.time()), "model": call.task}
    base |= {"object": "chat.completion.chunk"} | ({"usage": None} if usage else {})

    def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
        return event(
            None, {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}]}
        )

    yield chunk({"role": "assistant", "content": first})
    try:
        async for piece in pieces:
            yield chunk({"content": piece})
    except (ItemFailed, ItemExpired, ItemCancelled, StreamRestarted) as error:
        yield event(None, openai_error(named_problem(error, names)))
        return
    result = stream.result or {}
    yield chunk({}, result.get("finish_reason", "stop"))
    if usage:
        read, made = result.get("prompt_tokens", 0), result.get("completion_tokens", 0)
        counts = {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}
        yield event(None, {**base, "choices": [], "usage": counts})
    yield b"data: [DONE]\n\n"
