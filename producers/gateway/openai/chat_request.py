"""The body of a chat completion: its parameters and messages, turned into those of a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from producers.gateway.openai.request_bodies import Unserved, described_body, read_body, without_nulls, without_unserved
from producers.wire.catalogue import Catalogue, Task
from producers.wire.errors import InvalidInput
from producers.wire.forms import check_text, parameters

#: OpenAI's parameters, with the names of the task's parameters. `top_k` and `repetition_penalty` are not OpenAI's.
PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "repetition_penalty": "repetition_penalty",
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "stop": "stop",
    "seed": "seed",
}

#: OpenAI's parameters that the models here do not have, with the values that ask for nothing.
UNSERVED: Unserved = {
    "n": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "prompt_cache_retention": ("in_memory",),
    "prompt_cache_options": (),
    "moderation": (),
}

#: The same of messages. The templates of models know no names of participants.
UNSERVED_IN_MESSAGES: Unserved = {
    "name": (),
    "refusal": (),
    "audio": (),
    "annotations": ([],),
    "function_call": (),
    "tool_calls": ([],),
}

_LABEL = "Has no effect."


class TextPart(msgspec.Struct, forbid_unknown_fields=True):
    """A part of a message. The models here read text only."""

    type: Literal["text"]
    text: str


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None

    @property
    def text(self) -> str:
        """The text of all parts."""
        parts = self.content or ""
        return parts if isinstance(parts, str) else "".join(part.text for part in parts)


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """The options of a streamed answer."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[bool | None, Meta(extra_json_schema={"enum": [False, None]})] = None


class ChatBody(msgspec.Struct, forbid_unknown_fields=True):
    """A conversation to answer. The defaults are the task's: at the temperature 0 nothing is sampled."""

    model: str
    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, Meta(ge=0)] | None = None
    user: Annotated[str, Meta(description=_LABEL)] | None = None
    safety_identifier: Annotated[str, Meta(description=_LABEL)] | None = None
    prompt_cache_key: Annotated[str, Meta(description=_LABEL)] | None = None
    metadata: Annotated[dict[str, str], Meta(description=_LABEL)] | None = None

    @property
    def limit(self) -> str:
        """The name by which the caller knows the limit of the answer's tokens."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"


_EXAMPLE = {"model": "chat", "messages": [{"role": "user", "content": "What is the capital of France?"}]}

#: OpenAPI's description of the request.
DESCRIBED = described_body(ChatBody, _EXAMPLE, UNSERVED)


def chat_body(given: Mapping[str, Any]) -> ChatBody:
    """Return the body of a request. Raises InvalidInput."""
    messages = given.get("messages")
    if isinstance(messages, list):
        checked = [_served(message, f"messages[{place}].") for place, message in enumerate(messages)]
        given = {**given, "messages": checked}
    body = read_body(ChatBody, given, UNSERVED)
    if body.stream_options is not None:
        if not body.stream and body.stream_options.include_usage:
            raise InvalidInput("stream_options", "is only for stream: true", "leave it out, or stream the answer")
        if body.stream_options.include_obfuscation:
            raise InvalidInput("stream_options.include_obfuscation", "is not available here", "leave it out")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise InvalidInput("max_tokens", "and max_completion_tokens are the same", "send one of them")
    return body


def _served(message: object, place: str) -> object:
    return (
        without_unserved(without_nulls(message), UNSERVED_IN_MESSAGES, place) if isinstance(message, dict) else message
    )


def messages_of(catalogue: Catalogue, messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    """Return the messages as an item has them. Empty messages are left out: they say nothing.

    Raises InvalidInput for an empty last message of the user, which is the one to be answered.
    """
    found = []
    for place, message in enumerate(messages):
        text, where = message.text, f"messages[{place}].content"
        if (text and not text.isspace()) or (place == len(messages) - 1 and message.role == "user"):
            role = "system" if message.role == "developer" else message.role
            found.append({"role": role, "content": check_text(text, catalogue.limits, where)})
    if not found:
        raise InvalidInput("messages", "are all empty", "send a message of the user")
    return found


def params_of(catalogue: Catalogue, task: Task, body: ChatBody) -> dict[str, Any]:
    """Return the task's parameters. Raises InvalidInput, with the caller's name for the parameter."""
    params: dict[str, Any] = {}
    for theirs, ours in PARAMETERS.items():
        given = getattr(body, theirs)
        if given is None:
            continue
        if ours not in task.kind.params.__struct_fields__:
            raise InvalidInput(theirs, f"is not a parameter of {task.name!r}", "leave it out")
        try:
            own = parameters({ours: [given] if theirs == "stop" and isinstance(given, str) else given}, theirs)
            catalogue.check_params(task, own, field=theirs)
        except InvalidInput as error:
            problem = error.problem.replace(f"`{ours}` ", "").partition(" - at ")[0]
            raise InvalidInput(theirs, problem) from error
        params |= own
    return params
