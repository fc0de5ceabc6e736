"""/v1/chat/completions: answers of tasks of the kind `text-generation`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, StrictStr
from starlette.responses import Response

from producers.client.handles import value
from producers.client.request import NewItem
from producers.client.text_streams import AsyncTextStream
from producers.gateway.answers import Events, Json, event
from producers.gateway.gateway import Gateway, Here, Who, while_there
from producers.gateway.keys import Caller
from producers.gateway.openai.endpoint_calls import Call, answered, task_of
from producers.gateway.problems import Problem, item_problem, openai_error
from producers.gateway.schemas import Listed
from producers.wire.catalogue import Catalogue, Task
from producers.wire.errors import InvalidInput, ItemCancelled, ItemExpired, ItemFailed
from producers.wire.forms import sendable
from producers.wire.messages import new_id
from results_store.records import Result

router = APIRouter(prefix="/v1/chat/completions", tags=["openai"])

KIND = "text-generation"

#: OpenAI's parameters, with the names of the task's parameters.
PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "stop": "stop",
    "seed": "seed",
}

#: OpenAI's parameters that the models here do not have, with the values that request nothing.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "tools": (None, []),
    "functions": (None, []),
    "logprobs": (None, False),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
}

ROLES = ("system", "developer", "user", "assistant")


class ChatMessage(BaseModel):
    """A message of a conversation. Its content is a text, or a list of text parts."""

    role: StrictStr
    content: StrictStr | Listed[dict[str, Any]] | None = None


class ChatBody(BaseModel):
    """Fields without an effect here, such as `user`, are ignored. Fields for missing features are refused."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [{"model": "chat", "messages": [{"role": "user", "content": "What is the capital of France?"}]}]
        },
    )

    model: StrictStr
    messages: Listed[ChatMessage] = Field(min_length=1)
    stream: bool = False


@router.post("")
async def completions(request: Request, body: ChatBody, gateway: Here, caller: Who) -> Response:
    """Answer a conversation: in one response, or with `stream` as events."""
    call = plan(await gateway.client.catalogue(), body.model_dump())
    if not body.stream:
        return Json(await answered(request, gateway, caller, call))
    options = (body.model_extra or {}).get("stream_options")
    usage = isinstance(options, dict) and options.get("include_usage") is True
    # the first piece decides between an error's status and a stream
    stream, pieces, first = await while_there(request, _begun(gateway, caller, call))
    return Events(_chunks(call, stream, pieces, first, usage=usage))


def plan(catalogue: Catalogue, body: Mapping[str, Any]) -> Call:
    """Return the call of a request's body. Raises InvalidInput, or Problem for an unknown model."""
    task = task_of(catalogue, body.get("model"), KIND)
    for name, nothing in REFUSED.items():
        if body.get(name) not in nothing:
            raise InvalidInput(name, "is not available for the models here", "leave it out")
    item = NewItem({"messages": _messages(body.get("messages"))}, params=_params(task, body))

    return Call(task.name, [item], partial(shape, task.name))


def shape(task: str, rows: Sequence[Result]) -> dict[str, Any]:
    """Return the answer's body. It is the same each time, because a batch's file may be read again."""
    (row,) = rows
    output = value(row)
    made, read = output.get("completion_tokens", 0), output.get("prompt_tokens", row.tokens or 0)
    message = {"role": "assistant", "content": output["text"], "refusal": None}
    reason = output.get("finish_reason", "stop")
    return {
        "id": f"chatcmpl-{row.job}{row.seq}",
        "object": "chat.completion",
        "created": int(row.stored_at or time.time()),
        "model": task,
        "choices": [{"index": 0, "message": message, "finish_reason": reason, "logprobs": None}],
        "usage": {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made},
    }


def _messages(given: object) -> list[dict[str, str]]:
    if not isinstance(given, list) or not given:
        raise InvalidInput("messages", "must be a list of messages", 'send [{"role": "user", "content": …}]')
    return [_message(message, f"messages[{place}]") for place, message in enumerate(given)]


def _message(given: object, place: str) -> dict[str, str]:
    if not isinstance(given, dict) or given.get("role") not in ROLES:
        raise InvalidInput(f"{place}.role", f"must be one of {', '.join(ROLES)}")
    role = "system" if given["role"] == "developer" else given["role"]
    content = given.get("content")
    if isinstance(content, list):
        content = "".join(_part(part, f"{place}.content[{number}]") for number, part in enumerate(content))
    if not isinstance(content, str):
        raise InvalidInput(f"{place}.content", "must be text, or a list of text parts")
    return {"role": role, "content": sendable(content, f"{place}.content")}


def _part(given: object, place: str) -> str:
    text = given.get("text") if isinstance(given, dict) and given.get("type") == "text" else None
    if not isinstance(text, str):
        raise InvalidInput(place, "is not a text part", "the models here read text only")
    return text


def _params(task: Task, body: Mapping[str, Any]) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for theirs, ours in PARAMETERS.items():
        given = body.get(theirs)
        if given is None:
            continue
        if ours not in task.kind.params.__struct_fields__:
            raise InvalidInput(theirs, f"is not a parameter of {task.name!r}", "leave it out")
        params[ours] = [given] if theirs == "stop" and isinstance(given, str) else given
    return sendable(params, "body")


async def _begun(gateway: Gateway, caller: Caller, call: Call) -> tuple[AsyncTextStream, AsyncIterator[str], str]:
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
        raise item_problem(error) from error
    except TimeoutError:
        raise Problem(504, "Timeout", f"the fleet did not begin within {limit_s:g} s", retry_after_s=5) from None


async def _chunks(
    call: Call, stream: AsyncTextStream, pieces: AsyncIterator[str], first: str, *, usage: bool
) -> AsyncIterator[bytes]:
    """Yield an answer as events while it is written. If the reader disconnects, the item is cancelled."""
    base = {"id": f"chatcmpl-{new_id()}", "created": int(time.time()), "model": call.task}
    base |= {"object": "chat.completion.chunk"}

    def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
        return event(None, {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

    async with stream:
        yield chunk({"role": "assistant", "content": first})
        try:
            async for piece in pieces:
                yield chunk({"content": piece})
        except (ItemFailed, ItemExpired, ItemCancelled) as error:
            yield event(None, openai_error(item_problem(error)))
            return
        result = stream.result or {}
        yield chunk({}, result.get("finish_reason", "stop"))
        if usage:
            read, made = result.get("prompt_tokens", 0), result.get("completion_tokens", 0)
            counts = {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}
            yield event(None, {**base, "choices": [], "usage": counts})
        yield b"data: [DONE]\n\n"
