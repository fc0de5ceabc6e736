"""A batch's responses, made from its job's results at each request. They are not stored."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from producers.gateway.answers import encoded
from producers.gateway.gateway import Gateway
from producers.gateway.openai.endpoints import ENDPOINTS
from producers.gateway.openai.openai_answers import BatchLine, BatchLineError
from producers.gateway.problems import Problem, openai_error, openai_status, problem
from producers.wire.errors import InvalidInput
from results_store.errors import UnknownJob
from results_store.gateway.gateway_batches import FileBatch
from results_store.gateway.gateway_files import StoredFile
from results_store.records import Result, ResultState


@dataclass(frozen=True, slots=True)
class BatchAnswer:
    """The response to a request: a line of the output file, or, if `error` names an error, of the error file.

    A request that was answered by an error has a `response`, one that was not computed has none.
    """

    line: bytes
    error: str | None = None


async def answers(gateway: Gateway, batch: FileBatch) -> AsyncIterator[BatchAnswer]:
    """Yield a batch's responses in the order of its requests, in constant memory. Raises UnknownJob."""
    job = await gateway.client.job(batch.detail["job"])
    rows: list[Result] = []
    async for row in job.results():
        if rows and row.key != rows[0].key:
            yield _answer(batch, rows)
            rows = []
        rows.append(row)
    if rows:
        yield _answer(batch, rows)


async def content(gateway: Gateway, file: StoredFile) -> AsyncIterator[bytes]:
    """Return the content of a batch's output or error file.

    Raises Problem if the job was purged, or if its items are being computed again.
    """
    _, short, kind = file.id.split("-")
    batch = await gateway.client.ask(lambda store: store.file_batches.find(f"batch_{short}", tenant=file.tenant))
    try:
        job = None if batch is None else await gateway.client.status(batch.detail["job"])
    except UnknownJob:
        job = None
    if batch is None or job is None:
        raise Problem(404, "file_not_found", f"the results of {file.id!r} were purged", field="id")
    if not job.finished:
        raise Problem(503, "Unfinished", f"items of the job {job.id} are being computed again", retry_after_s=5)
    return _lines(gateway, batch, failed=kind == "error")


async def _lines(gateway: Gateway, batch: FileBatch, *, failed: bool) -> AsyncIterator[bytes]:
    async for answer in answers(gateway, batch):
        if (answer.error is not None) == failed:
            yield answer.line


def refusal(found: Problem) -> dict[str, Any]:
    """Return the error to store for a refused request. It holds all data of the response."""
    told = {"status": found.status_code, "field": found.field, "remedy": found.remedy}
    return {"kind": found.kind, "message": found.detail, **told}


#: OpenAI's codes and texts for requests that were not computed.
_NOT_COMPUTED: Mapping[ResultState, BatchLineError] = {
    ResultState.EXPIRED: {
        "code": "batch_expired",
        "message": "This request could not be executed before the completion window expired.",
    },
    ResultState.CANCELLED: {"code": "batch_cancelled", "message": "This request was cancelled with its batch."},
}


def _answer(batch: FileBatch, rows: Sequence[Result]) -> BatchAnswer:
    asked = json.loads(rows[0].key or "{}")
    id_ = f"batch_req_{batch.id.removeprefix('batch_')}_{asked['line']}"
    line: BatchLine = {"id": id_, "custom_id": asked["custom_id"], "response": None, "error": None}
    ended = next((row.state for row in rows if row.state in _NOT_COMPUTED), None)
    if ended is not None:
        line["error"] = _NOT_COMPUTED[ended]
        return BatchAnswer(encoded(line) + b"\n", ended)
    failed, status = None, 200
    try:
        body = _body(batch, rows, asked["options"])
    except (InvalidInput, Problem) as raised:
        found = problem(raised)
        failed, status, body = found.kind, openai_status(found), openai_error(found)
    line["response"] = {"status_code": status, "request_id": id_, "body": body}
    return BatchAnswer(encoded(line) + b"\n", failed)


def _body(batch: FileBatch, rows: Sequence[Result], options: dict[str, Any]) -> Any:
    told = rows[0].error or {}
    if "status" in told:
        raise Problem(told["status"], told["kind"], told["message"], field=told["field"], remedy=told["remedy"])
    return ENDPOINTS[batch.detail["endpoint"]].shape(rows[0].task, rows, **options)
