"""Routes of the schedules: lists of them and of their runs; operators pause, resume and remove them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from producers.commands.scheduling.schedule_times import planned
from producers.commands.scheduling.schedule_view import schedule_view
from producers.gateway.answers import Json
from producers.gateway.gateway import By, FleetViewer, Gateway, Here, Operator
from producers.gateway.openapi import api_answers
from producers.gateway.openapi.schema_of import answer_of
from producers.gateway.problems import Problem
from producers.wire.errors import ArgosyError
from producers.wire.live_nodes import ScheduleReader, schedule_readers
from producers.wire.outside.allowed_places import unread
from results_store.sql.waiting.schedules import Schedule, ScheduleRun, Schedules

router = APIRouter(prefix="/api", tags=["operations"])

Name = Annotated[str, Path(description="The schedule's name.", pattern=r"^[\w.@+-]{1,100}$")]
Limit = Annotated[int, Query(ge=1, le=1000)]

#: The parts of a URL that may be a secret: a login, and the query.
_LOGIN, _QUERY = re.compile(r"://[^\s/?#]*@"), re.compile(r"(://[^\s?#]*)\?\S*")


@router.get("/schedules", responses=answer_of(api_answers.SCHEDULES))
async def schedules(gateway: Here, _: FleetViewer) -> Response:
    """List the schedules by name, each with its submission, its next time and its last run.

    Logins and queries of URLs are left out. `unread` is a sentence if no live worker may read the sources; else, and if
    the broker does not answer, it is null.
    """
    return await _schedules(gateway)


@router.get("/schedules/{name}/runs", responses=answer_of(api_answers.SCHEDULE_RUNS))
async def runs(name: Name, gateway: Here, _: FleetViewer, limit: Limit = 20) -> Response:
    """List the newest runs of a schedule, newest first."""
    found = await gateway.client.ask(lambda store: _runs(store.schedules, name, limit))
    if found is None:
        raise _unknown(name)
    return Json({"runs": _shown([asdict(run) for run in found])})


@router.post("/schedules/{name}/pause", responses=answer_of(api_answers.SCHEDULES))
async def pause(name: Name, gateway: Here, _: Operator, by: By) -> Response:
    """Let a schedule have no more runs until it is resumed, and list all. A run that has begun goes on."""
    return await _changed(gateway, name, lambda every: every.pause(name, by=by))


@router.post("/schedules/{name}/resume", responses=answer_of(api_answers.SCHEDULES))
async def resume(name: Name, gateway: Here, _: Operator, by: By) -> Response:
    """End the pause of a schedule, and list all. Times that passed meanwhile are left out."""
    return await _changed(gateway, name, lambda every: every.resume(name, planned, by=by))


@router.delete("/schedules/{name}", responses=answer_of(api_answers.SCHEDULES))
async def remove(name: Name, gateway: Here, _: Operator, by: By) -> Response:
    """Remove a schedule with the list of its runs, and list the others. Its jobs stay."""
    return await _changed(gateway, name, lambda every: every.remove(name, by=by))


async def _changed(gateway: Gateway, name: str, change: Callable[[Schedules], bool]) -> Response:
    if not await gateway.client.ask(lambda store: change(store.schedules)):
        raise _unknown(name)
    return await _schedules(gateway)


async def _schedules(gateway: Gateway) -> Response:
    every, last = await gateway.client.ask(lambda store: (store.schedules.every(), store.schedules.last_runs()))
    readers = await _readers(gateway) if every else None
    return Json({"schedules": [_view(one, last.get(one.name), readers) for one in every]})


def _view(schedule: Schedule, last: ScheduleRun | None, readers: list[ScheduleReader] | None) -> dict[str, Any]:
    waits = schedule.next_at is not None and schedule.paused_at is None and readers is not None
    nodes = ((node.host, node.schedules) for node in readers or ())
    remedy = unread(schedule.submission, schedule.host, nodes) if waits else ""
    found = f"no running worker may read its source, and it waits until one may: {remedy}" if remedy else None
    return dict(_shown(schedule_view(schedule, last))) | {"unread": found}


async def _readers(gateway: Gateway) -> list[ScheduleReader] | None:
    try:
        return await gateway.client.ask_broker(schedule_readers)
    except ArgosyError:  # the store's part of the answer is known
        return None


def _shown(value: Any) -> Any:
    """Return JSON without the logins and queries of URLs in it."""
    if isinstance(value, str):
        return _QUERY.sub(r"\1?***", _LOGIN.sub("://***@", value))
    if isinstance(value, list | tuple):
        return [_shown(inner) for inner in value]
    return {name: _shown(inner) for name, inner in value.items()} if isinstance(value, dict) else value


def _runs(schedules: Schedules, name: str, limit: int) -> list[ScheduleRun] | None:
    """Return the newest runs of a schedule, or None if there is no such schedule."""
    known = any(one.name == name for one in schedules.every())
    return schedules.runs(name, limit) if known else None


def _unknown(name: str) -> Problem:
    return Problem(404, "UnknownSchedule", f"no schedule {name!r}", remedy="GET /api/schedules lists them")
