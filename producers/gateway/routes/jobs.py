"""Routes of jobs: submit many items from a body or from a stream of lines, see their progress, cancel them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from producers.client.async_handles import AsyncJob
from producers.client.request import NewItem
from producers.gateway.answers import Json
from producers.gateway.duties.webhook_message import check_address
from producers.gateway.gateway import By, Gateway, Here, Member, Viewer
from producers.gateway.keys import Caller
from producers.gateway.openapi import api_answers
from producers.gateway.openapi.schema_of import answer_of
from producers.gateway.problems import Problem
from producers.gateway.schemas import (
    MOST_OPENED,
    LinesOptions,
    NewJobBody,
    NewPriority,
    SubmissionOptions,
    item_of,
    opened,
)
from producers.gateway.views import job_view, webhook_view
from producers.wire.errors import InputTooLarge, InvalidInput
from producers.wire.messages import Priority
from results_store.errors import StoreError
from results_store.records import JobFilter, JobStatus

router = APIRouter(prefix="/api/jobs", tags=["jobs"])

#: Rejected inputs listed in an answer; the count includes all.
LISTED = 100

Before = Annotated[str | None, Query(description="`next` of the previous page.", max_length=80)]
_ACCEPTED = answer_of(api_answers.ACCEPTED_JOB, status=202)

_LINES = {
    "requestBody": {
        "required": True,
        "content": {
            "application/jsonl": {
                "schema": {"type": "string"},
                "example": '"A fine, moving film."\n{"input": "Two hours lost.", "key": "a2"}\n',
            }
        },
    }
}


@router.post("", status_code=202, responses=_ACCEPTED)
async def submit(body: NewJobBody, gateway: Here, caller: Member) -> Response:
    """Submit many items as one job. Answers once all items are accepted."""
    if len(body.inputs) > gateway.settings.max_items:
        raise _too_many(gateway)

    files = await gateway.takes_files(body.task)

    def items() -> Iterator[object]:
        for place, value in enumerate(body.inputs):
            yield _item(value, f"inputs[{place}]", files=files)

    job = await submit_job(gateway, caller, body, items())
    return await _accepted(job)


@router.post("/lines", status_code=202, openapi_extra=_LINES, responses=_ACCEPTED)
async def submit_lines(
    request: Request, options: Annotated[LinesOptions, Query()], gateway: Here, caller: Member
) -> Response:
    """Submit a stream of JSON Lines as one job, of any length: each line is an input, or an object with `input`.

    Items are accepted while the body arrives. If it breaks off or a line is wrong, the items before stay accepted, and
    the error names the job. Send the body again with the same `idempotency_key` to resume after the accepted items.
    """
    _check_type(request)
    accepted: list[str] = []
    files = await gateway.takes_files(options.task)

    async def items() -> AsyncIterator[object]:
        count = 0
        async for line in _lines(request, gateway.settings.max_body_bytes):
            count += 1
            if count > gateway.settings.max_items:
                raise _too_many(gateway)
            if not line.strip():
                continue
            yield _parsed(line, f"line {count}", files=files)

    def noting(id_: str, _: int) -> None:
        accepted[:] = [id_]

    try:
        job = await submit_job(gateway, caller, options.options(), items(), noting)
    except Problem as broken:  # the body was too slow or too long
        broken.job = accepted[-1] if accepted else None
        raise
    return await _accepted(job)


@router.get("", responses=answer_of(api_answers.JOBS))
async def newest(
    gateway: Here,
    caller: Viewer,
    *,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    before: Before = None,
    text: Annotated[str, Query(max_length=200, pattern=r"^[^\x00]*$")] = "",
    having: JobFilter | None = None,
) -> Response:
    """List jobs, newest first. `next`, if present, asks for the next page.

    `text` limits them to jobs with this text in their name, tenant or id, `having` to unfinished jobs or to jobs with
    results in a state.
    """
    page = await gateway.jobs(caller, limit=limit, before=place_of(before), text=text, having=having)
    last = page[-1] if len(page) == limit else None
    after = None if last is None else f"{last.created_at!r},{last.id}"
    return Json({"jobs": [job_view(job) for job in page], "next": after})


@router.get("/{job}", responses=answer_of(api_answers.ONE_JOB))
async def status(job: str, gateway: Here, caller: Viewer) -> Response:
    """Return a job with its progress, and with its webhook, if it has one."""
    found = await gateway.job(job, caller)
    webhook = await gateway.client.ask(lambda store: store.webhooks.find(found.id))
    return Json(job_view(found) | ({} if webhook is None else {"webhook": webhook_view(webhook)}))


@router.post("/{job}/cancel", responses=answer_of(api_answers.JOB))
async def cancel(job: str, gateway: Here, caller: Member, by: By) -> Response:
    """Cancel the rest of a job. Items that are not computed yet end as `cancelled` when a worker reaches them."""
    await gateway.job(job, caller)
    return Json(job_view(await gateway.client.ask(lambda store: store.cancel_job(job, by=by))))


@router.post("/{job}/priority", responses=answer_of(api_answers.JOB))
async def prioritize(job: str, body: NewPriority, gateway: Here, caller: Member, by: By) -> Response:
    """Give a job another priority. Its items that no worker holds move to it within seconds."""
    await gateway.job(job, caller)
    priority = int(Priority[body.priority.upper()])
    await gateway.client.ask(lambda store: store.prioritize_job(job, priority, by=by))
    return Json(job_view(await gateway.job(job, caller)))


async def submit_job(
    gateway: Gateway,
    caller: Caller,
    options: SubmissionOptions,
    items: Iterable[object] | AsyncIterable[object],
    on_accepted: Callable[[str, int], object] | None = None,
) -> AsyncJob:
    """Submit items as one job of the caller's, with its webhook. Raises InvalidInput."""
    url = options.webhook
    if url is not None:
        check_address(url, secrets=gateway.settings.webhook_secrets, private=gateway.settings.webhook_private)
    job = await gateway.client.submit_many(
        options.task,
        items,
        priority=options.priority,
        name=options.name,
        idempotency_key=options.idempotency_key,
        ttl_s=options.ttl_s,
        deadline_s=options.deadline_s,
        params=options.params,
        on_error="skip" if options.on_error == "skip" else "raise",
        on_accepted=on_accepted,
        patience_s=gateway.settings.patience_s if isinstance(items, Iterable) else gateway.settings.max_wait_s,
        tenant=caller.tenant,
    )
    if url is not None:
        with naming(job.id):
            await gateway.client.ask(lambda store: store.webhooks.add(job.id, url))
    return job


@contextmanager
def naming(job: str) -> Iterator[None]:
    """Let an error of the store name the job whose items are accepted: sent again, they would be another job."""
    try:
        yield
    except StoreError as error:
        error.job = job  # as the client's errors have it
        raise


async def _accepted(job: AsyncJob) -> Response:
    with naming(job.id):
        progress: JobStatus = await job.progress()
    rejected = [{"seq": one.seq, "key": one.key, "error": str(one.error)} for one in job.rejected[:LISTED]]
    view = job_view(progress) | {"rejected": rejected, "rejected_count": job.rejected_count}
    return Json(view, 202, {"Location": f"/api/jobs/{job.id}"})


def _item(value: object, place: str, *, files: bool) -> NewItem | InvalidInput:
    """Return an item, or its error for `on_error` to handle."""
    try:
        return item_of(value, place, files=files)
    except InvalidInput as error:
        return error


def _parsed(line: bytes, place: str, *, files: bool) -> NewItem | InvalidInput:
    if opened(line) > MOST_OPENED:
        return InputTooLarge(place, f"has over {MOST_OPENED:,} lists and objects", "split the input")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return InvalidInput(place, f"is not JSON: {error}", "write one JSON value per line")
    return _item(value, place, files=files)


async def _lines(request: Request, limit: int) -> AsyncIterator[bytes]:
    """Yield the lines of a body as they arrive. Raises InputTooLarge for a line over `limit` bytes."""
    rest = bytearray()
    count = 0
    async for part in request.stream():
        first, *others = part.split(b"\n")
        rest += first
        for line in others:
            count += 1
            yield bytes(rest)
            rest = bytearray(line)
        if len(rest) > limit:
            raise InputTooLarge(f"line {count + 1}", f"is longer than {limit:,} bytes", "send large inputs by URL")
        request.state.body.keep(len(rest))
    if rest:
        yield bytes(rest)


def _check_type(request: Request) -> None:
    sent = request.headers.get("content-type", "application/jsonl").partition(";")[0].strip().lower()
    if sent not in ("application/jsonl", "application/x-ndjson", "application/x-jsonlines", "text/plain"):
        raise Problem(415, "UnsupportedMediaType", f"lines must be application/jsonl, not {sent}", field="content-type")


def _too_many(gateway: Gateway) -> Problem:
    limit = gateway.settings.max_items
    detail = f"more than {limit:,} items in one job, or lines of its body"
    return Problem(413, "TooManyItems", detail, remedy="submit several jobs")


def place_of(before: str | None) -> tuple[float, str] | None:
    """Return the time and id in the `next` of a page. Raises InvalidInput."""
    if before is None:
        return None
    at, _, id_ = before.partition(",")
    try:
        place = float(at), id_
    except ValueError:
        place = math.nan, id_
    if not math.isfinite(place[0]) or not re.fullmatch(r"[0-9a-z]{26,32}", id_):
        raise InvalidInput("before", f"is not the `next` of a page: {before!r}")
    return place
