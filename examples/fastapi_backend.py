"""A FastAPI application of your own that asks the fleet while its caller waits: one AsyncClient for the whole process.

    uvicorn examples.fastapi_backend:app

`POST /rate` answers one text at once; `POST /nightly` accepts many, and `GET /nightly/JOB` says how far they are. The
fleet is found as by the `argosy` command; TASK names another task than `sentiment`. For HTTP without code of your own:
`argosy gateway`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from producers import (
    ArgosyError,
    AsyncClient,
    InvalidInput,
    ItemCancelled,
    ItemExpired,
    ItemFailed,
    ResultTimeout,
    SubmissionConflict,
    UnknownJob,
)

TASK = os.environ.get("TASK", "sentiment")

#: Longer than this nobody waits in front of a page.
PATIENCE_S = 10.0


#: All others are the fleet's: it is full or away, or not started yet. They pass, so the answer is 503.
STATUS: dict[type[ArgosyError], int] = {
    InvalidInput: 422,
    UnknownJob: 404,
    SubmissionConflict: 409,
    ItemExpired: 504,
    ResultTimeout: 504,
    ItemCancelled: 410,
}


class Review(BaseModel):
    text: str


class Reviews(BaseModel):
    texts: list[str] = Field(max_length=10_000)


@asynccontextmanager
async def life(app: FastAPI) -> AsyncIterator[None]:
    """The client belongs to the event loop: it is made with it, shared by all requests, and closed with it."""
    async with AsyncClient() as client:
        app.state.fleet = client
        yield


def fleet_of(request: Request) -> AsyncClient:
    client: AsyncClient = request.app.state.fleet
    return client


Fleet = Annotated[AsyncClient, Depends(fleet_of)]
app = FastAPI(lifespan=life)


@app.exception_handler(ArgosyError)
async def refused(_: Request, error: ArgosyError) -> JSONResponse:
    """Answer with the status of HTTP for each error, in every route. What passes by itself says when to come again."""
    if isinstance(error, ItemFailed):
        return JSONResponse({"detail": error.message}, 422 if "Input" in error.kind else 502)
    status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), 503)
    return JSONResponse({"detail": str(error)}, status, {"Retry-After": "2"} if status == 503 else None)


@app.post("/rate")
async def rate(review: Review, fleet: Fleet) -> Any:
    """Await one answer. What a thousand requests ask at the same time travels together."""
    handle = await fleet.submit(TASK, review.text, priority="interactive", deadline_s=PATIENCE_S)
    return {"answer": await handle.result(timeout_s=PATIENCE_S)}


@app.post("/nightly", status_code=202)
async def nightly(reviews: Reviews, fleet: Fleet) -> dict[str, str]:
    """Accept many: once this answers, they come to their results, whatever happens to this process."""
    job = await fleet.submit_many(TASK, reviews.texts)
    return {"job": job.id}


@app.get("/nightly/{job}")
async def progress(job: str, fleet: Fleet) -> dict[str, Any]:
    """How far a job is, and its results once it is finished."""
    status = await fleet.status(job)
    answers = [row.output async for row in fleet.results(job)] if status.finished else None
    return {"done": status.done, "total": status.total, "answers": answers}
