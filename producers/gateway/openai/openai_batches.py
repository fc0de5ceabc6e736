"""/v1/batches: the fleet computes a file of requests as bulk work, and returns a file of responses."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query, Request
from msgspec import Meta
from starlette.responses import Response

from producers.gateway.answers import Json
from producers.gateway.gateway import By, Gateway, Here, Member, Viewer
from producers.gateway.keys import Caller
from producers.gateway.openai import uploads
from producers.gateway.openai.openai_answers import BatchList, BatchView, RequestCounts
from producers.gateway.openai.request_bodies import Unserved, described_body, json_body, read_body
from producers.gateway.openapi.schema_of import answer_of
from producers.gateway.problems import Problem
from producers.wire.messages import is_id, new_id
from results_store.errors import UnknownJob
from results_store.gateway.gateway_batches import FileBatch
from results_store.records import JobStatus

router = APIRouter(prefix="/v1/batches", tags=["openai"])

#: The fields of a batch that are shown as they are stored.
_DETAIL = ("endpoint", "input_file_id", "output_file_id", "error_file_id", "metadata", "job")

#: The times at which a batch entered its states; null for states that it has not entered.
_TIMES = (
    "created_at",
    "expires_at",
    "in_progress_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)


class NewBatch(msgspec.Struct, forbid_unknown_fields=True):
    """A batch to create."""

    input_file_id: str
    endpoint: Literal["/v1/embeddings", "/v1/chat/completions"]
    completion_window: Literal["24h"]
    metadata: (
        Annotated[dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)]
        | None
    ) = None


_EXAMPLE = {
    "input_file_id": "file-01jd2m3n4p5q6r7s8t9v0w1x2y",
    "endpoint": "/v1/embeddings",
    "completion_window": "24h",
}

#: Output files end with their job's results, which the fleet's operator purges.
_UNSERVED: Unserved = {"output_expires_after": ()}


@router.post("", openapi_extra=described_body(NewBatch, _EXAMPLE, _UNSERVED), responses=answer_of(BatchView))
async def create(request: Request, gateway: Here, caller: Member) -> Response:
    """Create a batch. Errors in its file are shown in its status."""
    body = read_body(NewBatch, await json_body(request), _UNSERVED)
    file = await uploads.find(gateway, caller, body.input_file_id, "input_file_id")
    now = await gateway.client.ask(lambda store: store.now())
    batch = FileBatch(
        id=f"batch_{new_id()}",
        tenant=file.tenant,
        detail={
            "endpoint": body.endpoint,
            "input_file_id": file.id,
            "metadata": body.metadata,
            "expires_at": now + gateway.settings.batch_window_s,
            "counts": {"total": 0, "completed": 0, "failed": 0},
        },
        created_at=now,
    )
    await gateway.client.ask(lambda store: store.file_batches.add(batch))
    request.app.state.batches.wake()
    return Json(view(batch))


@router.get("", responses=answer_of(BatchList))
async def batches(
    gateway: Here, caller: Viewer, limit: Annotated[int, Query(ge=1, le=100)] = 20, after: uploads.After = None
) -> Response:
    """List batches, newest first."""
    found = await gateway.client.ask(
        lambda store: store.file_batches.page(tenant=caller.scope, after=after, limit=limit + 1)
    )
    return Json(uploads.page([view(batch) for batch in found], limit))


@router.get("/{batch}", responses=answer_of(BatchView))
async def batch(request: Request, batch: str, gateway: Here, caller: Viewer) -> Response:
    """Return the progress of a batch."""
    found = await _find(gateway, caller, batch)
    job = await _job(gateway, found)
    if job is not None and job.finished:
        request.app.state.batches.wake()
    return Json(view(found, job))


@router.post("/{batch}/cancel", responses=answer_of(BatchView))
async def cancel(request: Request, batch: str, gateway: Here, caller: Member, by: By) -> Response:
    """Cancel the requests of a batch that are not computed yet. The output file has the others."""
    found = await _find(gateway, caller, batch)
    now = time.time()
    changes = {} if found.detail.get("cancelling_at") else {"cancelling_at": now}
    cancelled = await gateway.client.ask(lambda store: store.file_batches.note(found.id, changes))
    if cancelled is None:
        raise Problem(409, "batch_finished", f"the batch is {(await _find(gateway, caller, batch)).status} already")
    job = await _job(gateway, cancelled)
    if job is not None:
        await gateway.client.ask(lambda store: store.cancel_job(job.id, by=by))
    request.app.state.batches.wake()
    return Json(view(cancelled))


async def _find(gateway: Gateway, caller: Caller, id_: str) -> FileBatch:
    known = id_.startswith("batch_") and is_id(id_.removeprefix("batch_"))
    found = await gateway.client.ask(lambda store: store.file_batches.find(id_, tenant=caller.scope)) if known else None
    if found is None:
        raise Problem(404, "batch_not_found", f"no batch {id_!r}", field="id", remedy="GET /v1/batches lists yours")
    return found


async def _job(gateway: Gateway, batch: FileBatch) -> JobStatus | None:
    """Return the job of an open batch, once the job exists."""
    if batch.finished_at is not None or batch.detail.get("job") is None:
        return None
    try:
        return await gateway.client.status(batch.detail["job"])
    except UnknownJob:
        return None


def _counts(batch: FileBatch, job: JobStatus | None) -> RequestCounts:
    """Return the counts of a batch's requests.

    While a batch runs, they are derived from its job's counts; several inputs of a request count in proportion.
    """
    counts: RequestCounts = batch.detail["counts"]
    if job is None:
        return counts
    each = (job.total / counts["total"] if counts["total"] else 0) or 1.0
    failed = job.failed + job.cancelled + job.expired
    return {**counts, "completed": int(job.succeeded / each), "failed": int(failed / each)}


def view(batch: FileBatch, job: JobStatus | None = None) -> dict[str, Any]:
    """Return a batch in the format of OpenAI's API. An open batch has the progress of its job."""
    detail, status = batch.detail, batch.status
    times = {**detail, "created_at": batch.created_at}
    if batch.finished_at is not None:
        times[f"{status}_at"] = batch.finished_at
    return {
        "id": batch.id,
        "object": "batch",
        "status": status,
        "completion_window": "24h",
        "errors": {"object": "list", "data": detail["errors"]} if detail.get("errors") else None,
        "request_counts": _counts(batch, job),
        **{name: detail.get(name) for name in _DETAIL},
        **{name: None if times.get(name) is None else int(times[name]) for name in _TIMES},
    }
