"""A job's results as JSON Lines, and its progress as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import Response

from producers.client.async_handles import AsyncJob
from producers.gateway.answers import Events, Json, JsonLines, event
from producers.gateway.gateway import Here, Viewer
from producers.gateway.openapi import api_answers
from producers.gateway.openapi.schema_of import EVENT, answer_of
from producers.gateway.problems import problem
from producers.gateway.schemas import MAX_COUNT
from producers.gateway.views import job_view, result_view
from producers.wire.messages import MOST_NAME
from results_store.records import JobStatus

router = APIRouter(prefix="/api/jobs/{job}", tags=["jobs"])

#: Seconds between comments on a silent stream; without them proxies close it.
SILENCE_S = 15.0


@router.get("/results", response_class=JsonLines)
async def results(
    job: str,
    gateway: Here,
    caller: Viewer,
    follow: Annotated[
        bool, Query(description="Stay connected, and send results as they come, until the job is finished.")
    ] = False,
) -> Response:
    """Stream a job's results, a line each: stored results by item and task; with `follow`, each as it comes."""
    await gateway.job(job, caller)
    found = await gateway.client.job(job)
    return JsonLines(_views(found, follow=follow))


@router.get("/page", responses=answer_of(api_answers.RESULTS))
async def page(
    job: str,
    gateway: Here,
    caller: Viewer,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    after_seq: Annotated[int, Query(ge=-1, le=MAX_COUNT)] = -1,
    after_task: Annotated[str | None, Query(max_length=MOST_NAME, pattern=r"^[^\x00]*$")] = None,
) -> Response:
    """Return a page of a job's results in the order of its items, after an item, or after one of its tasks."""
    await gateway.job(job, caller)
    after = None if after_seq < 0 else (after_seq + 1, "") if after_task is None else (after_seq, after_task)
    rows = await gateway.client.ask(lambda store: store.results(job, after=after, limit=limit))
    return Json({"results": [result_view(row) for row in rows]})


@router.get("/events", response_class=Events, responses={200: {"content": {"text/event-stream": {"schema": EVENT}}}})
async def events(job: str, gateway: Here, caller: Viewer) -> Response:
    """Send a job's progress as server-sent events: `progress` whenever it changes, then `finished`.

    A slow reader gets only the newest state.
    """
    await gateway.job(job, caller)
    found = await gateway.client.job(job)
    return Events(_progress(found))


async def _views(job: AsyncJob, *, follow: bool) -> AsyncIterator[dict[str, Any]]:
    async for row in job.as_completed() if follow else job.results():
        yield result_view(row)


async def _progress(job: AsyncJob) -> AsyncIterator[bytes]:
    newest = Newest()
    waiting = asyncio.ensure_future(job.wait(on_progress=newest.put))
    waiting.add_done_callback(lambda _: newest.changed.set())
    last: JobStatus | None = None
    try:
        while not waiting.done():
            status = await newest.take(SILENCE_S)
            if status is None:
                yield b": nothing new\n\n"
            elif status != last:
                last = status
                yield event("progress", job_view(status))
        yield event("finished", job_view(waiting.result()))
    except Exception as error:  # noqa: BLE001 - the answer has begun, so the error can only be an event
        yield event("error", {"kind": problem(error).kind, "detail": problem(error).detail})
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


class Newest:
    """Holds the newest status. A newer status replaces it, however slow the reader is."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self._status: JobStatus | None = None

    def put(self, status: JobStatus) -> None:
        self._status = status
        self.changed.set()

    async def take(self, timeout_s: float) -> JobStatus | None:
        """Wait for a change and return the newest status; None if nothing changes in this time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.changed.wait()
        except TimeoutError:
            return None
        self.changed.clear()
        return self._status
