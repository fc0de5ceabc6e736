"""A request to an OpenAI endpoint as items of a task, and their results as its answer. Shared by routes and batches."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from fastapi import Request

from producers.client.handles import value
from producers.client.redaction import redacted
from producers.client.request import NewItem
from producers.gateway.gateway import Detokenizer, Gateway, while_there
from producers.gateway.keys import Caller
from producers.gateway.problems import Problem, item_problem, problem
from producers.wire.catalogue import Catalogue, Task
from producers.wire.errors import ArgosyError, InputTooLarge, InvalidInput, ItemCancelled, ItemExpired, ItemFailed
from results_store.records import Result

#: The most items of an interactive request; larger requests have the priority `standard`.
PROMPT_ITEMS = 64

#: The fields of an item, by the names that the caller knows: ``{"input": "messages"}``.
Names: TypeAlias = Mapping[str, str]

#: The field that an error is about, at the beginning of its message.
_FIELD = re.compile(r"(?:input|params)[\w.\[\]]*(?=: )")


@dataclass(frozen=True, slots=True)
class Call:
    """The items of a request. `answer` makes the response's body from the items' rows, in their order.

    `answer` raises Problem. A Shape makes the same answer, given `options`.
    """

    task: str
    items: Sequence[NewItem]
    answer: Callable[[Sequence[Result]], Any]
    options: Mapping[str, Any] = field(default_factory=dict)


#: Makes a call from a request's body. Raises InvalidInput, or Problem for an unknown model.
Plan: TypeAlias = Callable[[Catalogue, Mapping[str, Any], Detokenizer | None], Call]

#: Makes a response's body from a task's name, the items' rows, and the call's options. Raises Problem.
Shape: TypeAlias = Callable[..., Any]


def task_of(catalogue: Catalogue, model: str, kind: str) -> Task:
    """Return the task that `model` names: the name of a task, or of a model with exactly one task of the kind."""
    able = [task for task in catalogue.tasks.values() if task.kind.name == kind]
    named = [task for task in able if task.name == model] or [task for task in able if task.model == model]
    if len(named) == 1:
        return named[0]
    names = f"there are: {', '.join(task.name for task in able)}" if able else "the fleet serves no such model"
    raise Problem(404, "model_not_found", f"no model {model!r} for {kind}", field="model", remedy=names)


def checked(catalogue: Catalogue, call: Call, names: Callable[[int], Names]) -> Call:
    """Return a call whose items the client would accept. Raises Problem, with the `names` of the item at a place."""
    task, replaced = catalogue.tasks[call.task], catalogue.limits.redact
    for place, item in enumerate(call.items):
        try:
            content = catalogue.check_input(task, item.input, field="input")
            if replaced:  # the text that is sent may be longer
                catalogue.check_input(task, redacted(content, replaced), field="input")
        except InvalidInput as error:
            raise named_problem(error, names(place)) from error
    return call


def output_of(row: Result, names: Names) -> Any:
    """Return the output of a row. Raises Problem, which names the caller's own fields, if it has none."""
    try:
        return value(row)
    except (ItemFailed, ItemExpired, ItemCancelled) as error:
        raise named_problem(error, names) from error


def named_problem(error: ArgosyError, names: Names) -> Problem:
    """Return the problem for an error of an item, with the name that its caller knows for the field at fault."""
    found = problem(error) if isinstance(error, InvalidInput) else item_problem(error)
    if field := _FIELD.match(found.detail):
        found.field = _named(field[0], names)
        found.detail = found.field + found.detail[field.end() :]
    if found.kind == InputTooLarge.__name__ and found.field not in (None, "file"):
        # some clients of OpenAI look for this code, others for these words
        detail = found.detail.removeprefix(f"{found.field}: ")
        detail = f"{found.field}: is longer than the model's context length: {detail}"
        return Problem(400, "context_length_exceeded", detail, field=found.field)
    return found


def _named(field: str, names: Names) -> str:
    for ours, theirs in names.items():
        if field == ours or field.startswith((f"{ours}.", f"{ours}[")):
            return theirs + field[len(ours) :]
    return field


async def answered(request: Request, gateway: Gateway, caller: Caller, call: Call) -> Any:
    """Compute a call and return the answer's body. Raises Problem.

    The items are not durable: nobody could fetch the results later, and a caller without an answer asks again.
    """
    return call.answer(await while_there(request, _computed(gateway, caller, call)))


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
