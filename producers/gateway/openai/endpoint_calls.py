"""One request in OpenAI's shape as items of a task, and its results as the answer: what routes and batches share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from fastapi import Request

from producers.client.request import NewItem
from producers.gateway.gateway import Gateway, while_there
from producers.gateway.keys import Caller
from producers.gateway.problems import Problem, item_problem
from producers.wire.catalogue import Catalogue, Task
from producers.wire.errors import InvalidInput, ItemCancelled, ItemExpired, ItemFailed
from results_store.records import Result

#: More items than these in one request are not what somebody waits for at a prompt.
PROMPT_ITEMS = 64


@dataclass(frozen=True, slots=True)
class Call:
    """What a request asks of the fleet. `answer` makes the response's body of the items' rows, in their order.

    `answer` raises ItemFailed, ItemExpired or ItemCancelled. With `options`, a Shape makes the same answer.
    """

    task: str
    items: Sequence[NewItem]
    answer: Callable[[Sequence[Result]], dict[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)


#: Turns a request's body into a call. Raises InvalidInput, or Problem for a model that is not there.
Plan: TypeAlias = Callable[[Catalogue, Mapping[str, Any]], Call]

#: Makes a response's body of a task's name, its items' rows and, by name, the call's options. Raises as `Call.answer`.
Shape: TypeAlias = Callable[..., dict[str, Any]]


def task_of(catalogue: Catalogue, model: object, kind: str) -> Task:
    """Return the task that a request means by `model`: a task's name, or a model's that has one such task."""
    if not isinstance(model, str):
        raise InvalidInput("model", f"must be text, not {type(model).__name__}", "GET /v1/models lists the models")
    able = [task for task in catalogue.tasks.values() if task.kind.name == kind]
    named = [task for task in able if task.name == model] or [task for task in able if task.model == model]
    if len(named) == 1:
        return named[0]
    names = f"there are: {', '.join(task.name for task in able)}" if able else "none of the kind is served"
    raise Problem(404, "model_not_found", f"no model {model!r} for {kind}", field="model", remedy=names)


async def answered(request: Request, gateway: Gateway, caller: Caller, call: Call) -> dict[str, Any]:
    """Have the fleet compute a call and return the answer's body.

    Not durable: nobody could come back for the results, and who gets none asks again.
    """
    rows = await while_there(request, _computed(gateway, caller, call))
    try:
        return call.answer(rows)
    except (ItemFailed, ItemExpired, ItemCancelled) as error:
        raise item_problem(error) from error


async def _computed(gateway: Gateway, caller: Caller, call: Call) -> list[Result]:
    priority = "interactive" if len(call.items) <= PROMPT_ITEMS else "standard"

    async def one(item: NewItem) -> Result:
        handle = await gateway.client.submit(
            call.task,
            item.input,
            params=item.params,
            priority=priority,
            deadline_s=gateway.settings.openai_wait_s,
            durable=False,
            tenant=caller.tenant,
        )
        promise: asyncio.Future[list[Result]] = asyncio.get_running_loop().create_future()
        handle.tell(promise)
        return (await promise)[0]

    try:
        async with asyncio.timeout(gateway.settings.openai_wait_s):
            return await asyncio.gather(*(one(item) for item in call.items))
    except TimeoutError:
        wait_s = gateway.settings.openai_wait_s
        raise Problem(504, "Timeout", f"the fleet did not answer within {wait_s:g} s", retry_after_s=5) from None
