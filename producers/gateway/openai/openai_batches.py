"""/v1/batches: a file of requests in, a file of responses out, computed as bulk by the fleet."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from producers.gateway.answers import Json
from producers.gateway.gateway import Gateway, Here, Who
from producers.gateway.keys import Caller
from producers.gateway.openai import uploads
from producers.gateway.openai.endpoints import ENDPOINTS
from producers.gateway.problems import Problem
from producers.wire.messages import is_id, new_id
from results_store.errors import UnknownJob
from results_store.gateway.gateway_batches import FileBatch

router = APIRouter(prefix="/v1/batches", tags=["openai"])

#: When a batch came into which state; those it has not been in are null.
_TIMES = (
    "in_progress_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)


class NewBatch(BaseModel):
    """A batch to begin."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "input_file_id": "file-01jd2m3n4p5q6r7s8t9v0w1x2y",
                    "endpoint": "/v1/embeddings",
                    "completion_window": "24h",
                }
            ]
        }
    )

    input_file_id: str
    endpoint: str = Field(description=f"One of {', '.join(ENDPOINTS)}.")
    completion_window: Literal["24h"]
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = Field(
        None, max_length=16
    )


@router.post("")
async def create(request: Request, body: NewBatch, gateway: Here, caller: Who) -> Response:
    """Begin a batch. What is wrong with its file shows in its status."""
    if body.endpoint not in ENDPOINTS:
        known = ", ".join(ENDPOINTS)
        raise Problem(
            400, "invalid_endpoint", f"no batches for {body.endpoint!r}", field="endpoint", remedy=f"one of {known}"
        )
    file = await uploads.find(gateway, caller, body.input_file_id)
    now = time.time()
    batch = FileBatch(
        id=f"batch_{new_id()}",
        tenant=file.tenant,
        status="validating",
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
    request.app.state.runner.wake()
    return Json(view(batch))


@router.get("")
async def batches(
    gateway: Here, caller: Who, limit: Annotated[int, Query(ge=1, le=100)] = 20, after: uploads.After = None
) -> Response:
    """List batches, the newest first."""
    found = await gateway.client.ask(
        lambda store: store.file_batches.page(tenant=caller.scope, after=after, limit=limit + 1)
    )
    return Json(uploads.page([view(batch) for batch in found], limit))


@router.get("/{batch}")
async def batch(batch: str, gateway: Here, caller: Who) -> Response:
    """Return how far a batch is."""
    found = await _find(gateway, caller, batch)
    return Json(view(found, await _progress(gateway, found)))


@router.post("/{batch}/cancel")
async def cancel(request: Request, batch: str, gateway: Here, caller: Who) -> Response:
    """Cancel what a batch has not computed yet; what it has is in its output file in the end."""
    found = await _find(gateway, caller, batch)
    if found.finished_at is not None:
        raise Problem(409, "batch_finished", f"the batch is {found.status} already")
    await gateway.client.ask(lambda store: store.file_batches.cancel(found.id, time.time()))
    request.app.state.runner.wake()
    return Json(view(await _find(gateway, caller, batch)))


async def _find(gateway: Gateway, caller: Caller, id_: str) -> FileBatch:
    known = id_.startswith("batch_") and is_id(id_.removeprefix("batch_"))
    found = await gateway.client.ask(lambda store: store.file_batches.find(id_, tenant=caller.scope)) if known else None
    if found is None:
        raise Problem(404, "batch_not_found", f"no batch {id_!r}", field="id", remedy="GET /v1/batches lists yours")
    return found


async def _progress(gateway: Gateway, batch: FileBatch) -> dict[str, int] | None:
    """Counts while a batch runs, from its job. A request with several inputs counts in proportion until the end."""
    job, total = batch.detail.get("job"), batch.detail["counts"]["total"]
    if batch.finished_at is not None or job is None:
        return None
    try:
        status = await gateway.client.status(job)
    except UnknownJob:
        return None
    each = status.total / total if total and status.total else 1.0
    failed = status.failed + status.cancelled + status.expired
    return {"total": total, "completed": int(status.succeeded / each), "failed": int(failed / each)}


def view(batch: FileBatch, counts: dict[str, int] | None = None) -> dict[str, Any]:
    """Return a batch as OpenAI's API shows it."""
    detail = batch.detail
    shown: dict[str, Any] = {
        "id": batch.id,
        "object": "batch",
        "endpoint": detail["endpoint"],
        "errors": {"object": "list", "data": detail["errors"]} if detail.get("errors") else None,
        "input_file_id": detail["input_file_id"],
        "completion_window": "24h",
        "status": batch.status,
        "output_file_id": detail.get("output_file_id"),
        "error_file_id": detail.get("error_file_id"),
        "created_at": int(batch.created_at),
        "expires_at": int(detail["expires_at"]),
        "request_counts": counts or detail["counts"],
        "metadata": detail["metadata"],
        "job": detail.get("job"),
    }
    times = {**detail, "cancelling_at": batch.cancelled_at}
    if batch.finished_at is not None:
        times[f"{batch.status}_at"] = batch.finished_at
    return shown | {name: None if times.get(name) is None else int(times[name]) for name in _TIMES}
