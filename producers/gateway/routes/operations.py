"""Routes of operators: tasks, the fleet, failures, dead letters, replay; and the health checks."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import Annotated, Any, Literal, TypedDict

import msgspec
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from producers.gateway import problems
from producers.gateway.answers import Json
from producers.gateway.gateway import By, FleetViewer, Gateway, Here, Member, Viewer
from producers.gateway.openapi import api_answers
from producers.gateway.openapi.schema_of import answer_of
from producers.gateway.problems import Problem, problem
from producers.gateway.schemas import Replay
from producers.gateway.views import result_view
from producers.wire.catalogue import Task
from producers.wire.errors import ArgosyError, InvalidInput, InvalidMessage
from producers.wire.messages import decode_bytes
from results_store.records import DeadLetter, Replayed

router = APIRouter(tags=["operations"])

#: The routes without a key.
public = APIRouter(tags=["operations"])

#: Time limit for broker and store to answer before the gateway counts as not ready.
READY_S = 5.0

Limit = Annotated[int, Query(ge=1, le=1000)]


class Health(TypedDict):
    """The state of the gateway."""

    status: Literal["ok", "ready"]


_NOT_READY = {**problems.RESPONSES["5XX"], "description": "Broker or store do not answer, or batches do not advance."}

JobFilter = Annotated[str | None, Query(description="Only results of this job.")]


@public.get("/healthz", responses=answer_of(Health))
async def healthz() -> Response:
    """Answer if the process and its event loop run."""
    return Json({"status": "ok"})


@public.get("/readyz", responses=answer_of(Health) | {503: _NOT_READY})
async def readyz(request: Request, gateway: Here) -> Response:
    """Ask broker and store, and answer if both answered and the gateway's own tasks make progress."""
    state = request.app.state
    if stuck := state.batches.problem() or state.webhooks.problem():
        raise Problem(503, "NotReady", stuck, retry_after_s=5)
    try:
        async with asyncio.timeout(READY_S):
            await gateway.client.check()
    except TimeoutError:
        raise Problem(
            503, "NotReady", f"broker and store did not answer within {READY_S:g} s", retry_after_s=5
        ) from None
    except ArgosyError as error:
        raise Problem(503, "NotReady", f"{type(error).__name__}: {problem(error).detail}", retry_after_s=5) from error
    return Json({"status": "ready"})


@router.get("/api/tasks", responses=answer_of(api_answers.TASKS))
async def tasks(gateway: Here, _: Viewer) -> Response:
    """List the tasks with their kind, the form of their inputs, and their parameters."""
    catalogue = await gateway.client.catalogue()
    return Json({"tasks": [_task(task) for task in catalogue.tasks.values()]})


@router.get("/api/failures", responses=answer_of(api_answers.FAILURES))
async def failures(gateway: Here, caller: Viewer, limit: Limit = 50, job: JobFilter = None) -> Response:
    """List the newest failed results, each with its error."""
    if job is not None:
        await gateway.job(job, caller)
    rows = await gateway.client.ask(lambda store: store.recent_failures(limit=limit, job=job, tenant=caller.scope))
    return Json({"failures": [result_view(row) for row in rows]})


@router.get("/api/dead", responses=answer_of(api_answers.DEAD))
async def dead(gateway: Here, caller: Viewer, limit: Limit = 50, job: JobFilter = None) -> Response:
    """List the envelopes that failed after too many attempts, with their inputs and errors.

    For keys that see all tenants, and without `job`, `refused` lists the messages that workers refused. It is null if
    the broker does not answer.
    """
    if job is not None:
        await gateway.job(job, caller)
    letters = await gateway.client.ask(
        lambda store: store.dead_letters.newest(job=job, limit=limit, tenant=caller.scope)
    )
    found: dict[str, Any] = {"dead": [_letter(letter) for letter in letters]}
    if caller.all_tenants and job is None:
        found["refused"] = await _refused(gateway, limit)
    return Json(found)


@router.post("/api/replay", responses=answer_of(api_answers.REPLAYED))
async def replay(body: Replay, gateway: Here, caller: Member, by: By) -> Response:
    """Queue failed items again: delete their failed results and compute them once more."""
    if body.job is not None:
        await gateway.job(body.job, caller)
    elif not caller.operator:
        raise InvalidInput("job", "is missing", "name the job; only operators can replay all jobs")
    began_at = await gateway.client.ask(lambda store: store.now())
    envelopes = results = 0
    while True:
        portion: Replayed = await gateway.client.ask(
            lambda store: store.dead_letters.replay(
                job=body.job,
                error_kind=body.error_kind,
                failed_before=began_at,
                by=None if envelopes else by,  # noqa: B023 - run at once; the audit log has one entry
            )
        )
        if not portion.envelopes:
            return Json({"envelopes": envelopes, "results": results})
        envelopes, results = envelopes + portion.envelopes, results + portion.results


@router.get("/api/fleet", responses=answer_of(api_answers.FLEET))
async def fleet(gateway: Here, _: FleetViewer, batches: Limit = 50) -> Response:
    """Return the queued work by model and priority, and the newest micro-batches, of all tenants."""
    depth = await gateway.client.ask(lambda store: store.depth())
    ran = await gateway.client.ask(lambda store: store.flight.recent(limit=batches))
    return Json({"at": time.time(), "depth": [asdict(one) for one in depth], "batches": [asdict(one) for one in ran]})


@router.get("/api/activity", responses=answer_of(api_answers.ACTIVITY))
async def activity(gateway: Here, _: FleetViewer) -> Response:
    """Return the queued work by priority and model, and the last minute's devices and batches, of all tenants."""
    return Json(await gateway.activity.now())


async def _refused(gateway: Gateway, limit: int) -> list[dict[str, Any]] | None:
    try:
        return [msgspec.structs.asdict(message) for message in await gateway.client.refused_messages(limit)]
    except ArgosyError:  # the store's part of the answer is known; `/readyz` and the callers' own items tell the cause
        return None


def _task(task: Task) -> dict[str, Any]:
    fields = msgspec.structs.fields(task.kind.params)
    params = {
        field.name: {
            "required": field.required and field.name not in task.params,
            "default": msgspec.to_builtins(task.params.get(field.name, None if field.required else _default(field))),
        }
        for field in fields
    }
    return {
        "name": task.name,
        "kind": task.kind.name,
        "model": task.model,
        "input": task.kind.modality,
        "summary": task.summary or task.kind.summary,
        "params": params,
    }


def _default(field: msgspec.structs.FieldInfo) -> Any:
    return field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default


def _letter(letter: DeadLetter) -> dict[str, Any]:
    try:
        payload: Any = decode_bytes(letter.payload, letter.content_type)
    except InvalidMessage:
        payload = None
    view = {name: getattr(letter, name) for name in ("id", "job", "model", "priority", "attempts", "worker", "error")}
    view |= {"created_at": letter.created_at, "finished_at": letter.finished_at, "items": _texts(payload)}
    return view | {"failures": [result_view(row) for row in letter.failures]}


def _texts(payload: Any) -> list[dict[str, Any]]:
    """Return the items of an envelope without their bytes."""
    items = payload.get("items", []) if isinstance(payload, dict) else []
    named = [item for item in items if isinstance(item, dict)]
    return [
        {
            name: "(bytes)" if isinstance(value, dict | bytes) else value
            for name, value in item.items()
            if name != "params"
        }
        for item in named
    ]
