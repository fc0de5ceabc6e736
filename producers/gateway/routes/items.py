"""Routes of a single item: submit, wait for results, look up, cancel."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from producers.client import notices
from producers.client.async_handles import AsyncHandle
from producers.client.request import NewItem
from producers.gateway.answers import Json
from producers.gateway.gateway import By, Gateway, Here, Member, Viewer, while_there
from producers.gateway.keys import Caller
from producers.gateway.openapi import api_answers
from producers.gateway.openapi.schema_of import answer_of
from producers.gateway.problems import Problem
from producers.gateway.routes.jobs import naming, submit_job
from producers.gateway.schemas import NewOne, SubmissionOptions, input_of
from producers.gateway.views import item_view
from producers.wire.errors import InvalidInput, ResultTimeout
from producers.wire.messages import ID
from results_store.errors import StoreUnavailable, UnknownJob
from results_store.records import Result

router = APIRouter(prefix="/api/items", tags=["items"])

#: An item's id names its results and their number, so that any gateway can answer for it: JOB.SEQ.COUNT
_ID = re.compile(rf"({ID})\.(\d{{1,15}})\.(\d{{1,3}})", re.ASCII)

_MISSING = {"description": "Some results are not ready yet; `Location` is the address to ask again."}
_ANSWERS = answer_of(api_answers.ITEM) | {202: {**answer_of(api_answers.ITEM)[200], **_MISSING}}

ItemId = Annotated[
    str, Path(description="The `id` in the answer to the submission.", examples=["01jd2m3n4p5q6r7s8t9v0w1x2y.7.1"])
]
WaitS = Annotated[float, Query(ge=0, le=3600, description="Time to wait for the results, in seconds; 120 at most.")]


@router.post("", status_code=200, responses=_ANSWERS)
async def submit(request: Request, body: NewOne, gateway: Here, caller: Member) -> Response:
    """Submit an item. With `wait_s`, answer with its results if they come in time; else 202 and a `Location`.

    With `webhook`, the item is a job of its own, whose id its id begins with, and the end of this job is told.
    """
    files = await gateway.takes_files(body.task)
    if body.webhook is not None:
        return await _submit_told(request, body, gateway, caller, files=files)
    handle = await gateway.client.submit(
        body.task,
        input_of(body.input, "input") if files else body.input,
        priority=body.priority,
        deadline_s=body.deadline_s,
        params=body.params,
        key=body.key,
        durable=body.durable,
        tenant=caller.tenant,
    )
    gateway.keep(handle)
    id_, expected = f"{handle.job}.{handle.seq}.{len(handle.tasks)}", len(handle.tasks)
    try:
        rows = await while_there(request, _arrived(gateway, handle, body.wait_s))
        return _answer(id_, rows, expected, await _paused(gateway, handle.job, rows, expected))
    except StoreUnavailable:  # the item is accepted: sent again, it would be computed twice
        return _answer(id_, [], expected)


@router.get("/{item}", responses=_ANSWERS)
async def look(request: Request, item: ItemId, gateway: Here, caller: Viewer, wait_s: WaitS = 0) -> Response:
    """Return an item's results, after waiting for up to `wait_s`; 202 while some are missing."""
    job, seq, expected = await _known(gateway, caller, item)
    handle = gateway.kept(job, seq)
    if handle is not None:
        rows = await while_there(request, _arrived(gateway, handle, wait_s))
    else:
        rows = await while_there(request, _stored(gateway, caller, job, seq, expected, wait_s))
    if not rows and handle is None and not await _plausible(gateway, job, seq):
        raise UnknownJob(f"no item {item!r}")
    return _answer(item, rows, expected, await _paused(gateway, job, rows, expected))


@router.delete("/{item}", responses=_ANSWERS)
async def cancel(item: ItemId, gateway: Here, caller: Member, by: By) -> Response:
    """Cancel an item that this gateway accepted recently. Computed results stay."""
    job, seq, expected = await _known(gateway, caller, item)
    handle = gateway.kept(job, seq)
    if handle is None:
        rows = await gateway.client.ask(lambda store: store.results_of(job, [seq]))
        if len(rows) < expected:
            raise Problem(
                409, "NotHere", "this gateway did not accept the item, or not recently", remedy="wait for its results"
            )
        return _answer(item, rows, expected)
    await handle.cancel(by=by)
    return _answer(item, await handle.results(), expected)


async def _submit_told(request: Request, body: NewOne, gateway: Gateway, caller: Caller, *, files: bool) -> Response:
    """Submit an item with a webhook. The job's row is the outbox of a webhook, so the item has a job of its own."""
    if not body.durable:
        raise InvalidInput("webhook", "needs an item that is stored", "leave out `durable`")
    options = SubmissionOptions(**{name: getattr(body, name) for name in ("task", "params", "deadline_s", "priority")})
    options.webhook = body.webhook
    item = NewItem(input_of(body.input, "input") if files else body.input, body.key, origin="input")
    job = await submit_job(gateway, caller, options, [item])
    with naming(job.id):
        expected = (await job.progress()).total
    rows = await while_there(request, _stored(gateway, caller, job.id, 0, expected, body.wait_s))
    return _answer(f"{job.id}.0.{expected}", rows, expected, await _paused(gateway, job.id, rows, expected))


async def _arrived(gateway: Gateway, handle: AsyncHandle, wait_s: float) -> Sequence[Result]:
    """Return the item's rows once all have arrived, or the rows so far after `wait_s`."""
    if wait_s > 0:
        promise: asyncio.Future[list[Result]] = asyncio.get_running_loop().create_future()
        handle.tell(promise)
        try:
            async with asyncio.timeout(min(wait_s, gateway.settings.max_wait_s)):
                rows = await promise
            gateway.drop(handle.job, handle.seq)
            return rows
        except (TimeoutError, ResultTimeout):
            pass
        finally:
            handle.forget(promise)
    return await handle.results()


async def _stored(
    gateway: Gateway, caller: Caller, job: str, seq: int, expected: int, wait_s: float
) -> Sequence[Result]:
    """Do the same as `_arrived` for an item of another gateway, by polling the store.

    A key with many requests waits longer between looks.
    """
    until = time.monotonic() + min(wait_s, gateway.settings.max_wait_s)
    while True:
        started = time.monotonic()
        rows = await gateway.client.ask(lambda store: store.results_of(job, [seq]))
        now = time.monotonic()
        if len(rows) >= expected or now >= until:
            return rows
        await asyncio.sleep(min(notices.quiet_s(gateway.serving[caller.key], now - started), until - now))


async def _known(gateway: Gateway, caller: Caller, item: str) -> tuple[str, int, int]:
    """Split an item id into job, seq and number of results. Raises UnknownJob if it is not the caller's."""
    match = _ID.fullmatch(item)
    if match is None or match[3] == "0":
        raise UnknownJob(f"no item {item!r}; an id looks like 01jd2m3n4p5q6r7s8t9v0w1x2y.7.1")
    await gateway.job(match[1], caller)
    return match[1], int(match[2]), int(match[3])


async def _plausible(gateway: Gateway, job: str, seq: int) -> bool:
    """Return whether the job can hold such an item without results yet."""
    status = await gateway.client.status(job)
    return seq < max(status.items, 1) or not status.finished


async def _paused(gateway: Gateway, job: str, rows: Sequence[Result], expected: int) -> str | None:
    """Return a sentence if an operator has paused something that the item waits for."""
    return None if len(rows) >= expected else await gateway.paused(job)


def _answer(id_: str, rows: Sequence[Result], expected: int, paused: str | None = None) -> Response:
    view: dict[str, Any] = item_view(id_, rows, expected) | ({"paused": paused} if paused else {})
    status, where = (200 if view["done"] else 202), f"/api/items/{id_}"
    return Json(view, status, {"Location": where} if status == 202 else {})
