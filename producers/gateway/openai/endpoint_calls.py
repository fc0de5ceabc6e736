"""A request to an OpenAI endpoint as items of a task, and their results as its answer. Shared by routes and batches."""

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

#: The most items of an interactive request; larger requests have the priority `standard`.
PROMPT_ITEMS = 64


@dataclass(frozen=True, slots=True)
class Call:
    """The items of a request. `answer` makes the response's body from the items' rows, in their order.

    `answer` raises ItemFailed, ItemExpired or ItemCancelled. A Shape makes the same answer, given `options`.
    """

    task: str
    items: Sequence[NewItem]
    answer: Callable[[Sequence[Result]], dict[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)


#: Makes a call from a request's body. Raises InvalidInput, or Problem for an unknown model.
Plan: TypeAlias = Callable[[Catalogue, Mapping[str, Any]], Call]

#: Makes a response's body from a task's name, the items' rows, and the call's options. Raises the errors of
#: `Call.answer`.
Shape: TypeAlias = Callable[..., dict[str, Any]]


def task_of(catalogue: Catalogue, model: object, kind: str) -> Task:
    """Return the task that `model` names: the name of a task, or of a model with exactly one task of the kind."""
    if not isinstance(model, str):
        raise InvalidInput("model", f"must be text, not {type(model).__name__}", "GET /v1/models lists the models")
    able = [task for task in catalogue.tasks.values() if task.kind.name == kind]
    named = [task for task in able if task.name == model] or [task for task in able if task.model == model]
    if len(named) == 1:
        return named[0]
    names = f"there are: {', '.join(task.name for task in able)}" if able else "the fleet serves no such model"
    raise Problem(404, "model_not_found", f"no model {model!r} for {kind}", field="model", remedy=names)


async def answered(request: Request, gateway: Gateway, caller: Caller, call: Call) -> dict[str, Any]:
    """Compute a call and return the answer's body.

    The items are not durable: nobody could fetch the results later, and a caller without an answer asks again.
    """
    rows = await while_there(request, _computed(gateway, caller, call))
    try:
        return call.answer(rows)
    except (ItemFailed, ItemExpired, ItemCancelled) as error:
        raise item_problem(error) from error


async def _computed(gateway: Gateway, caller: Caller, call: Call) -> list[Result]:
    priority = "interactive" if len(call.items) <= PROMPT_ITEMS else "standard"

    async def result(item: NewItem) -> Result:
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
            return await asyncio.gather(*(result(item) for item in call.items))
    except TimeoutError:
        wait_s = gateway.settings.openai_wait_s
        raise Problem(504, "Timeout", f"the fleet did not answer within {wait_s:g} s", retry_after_s=5) from None
