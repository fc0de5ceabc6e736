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

from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel, Field

from producers import (
    AsyncClient,
    BrokerUnavailable,
    InvalidInput,
    ItemFailed,
    Overloaded,
    ResultTimeout,
    StoreUnavailable,
    UnknownJob,
)

TASK = os.environ.get("TASK", "sentiment")

#: Longer than this nobody waits in front of a page.
PATIENCE_S = 10.0


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


@app.post("/rate")
async def rate(review: Review, fleet: Fleet) -> Any:
    """Await one answer. What a thousand requests ask at the same time travels together."""
    try:
        handle = await fleet.submit(TASK, review.text, priority="interactive", deadline_s=PATIENCE_S)
        return {"answer": await handle.result(timeout_s=PATIENCE_S)}
    except InvalidInput as error:
        raise HTTPException(422, str(error)) from error
    except ItemFailed as error:
        raise HTTPException(422 if "Input" in error.kind else 502, error.message) from error
    except (Overloaded, BrokerUnavailable, StoreUnavailable) as error:
        raise HTTPException(503, str(error), {"Retry-After": "2"}) from error
    except ResultTimeout as error:
        raise HTTPException(504, str(error)) from error


@app.post("/nightly", status_code=202)
async def nightly(reviews: Reviews, fleet: Fleet) -> dict[str, str]:
    """Accept many: once this answers, they come to their results, whatever happens to this process."""
    job = await fleet.submit_many(TASK, reviews.texts)
    return {"job": job.id}


@app.get("/nightly/{job}")
async def progress(job: str, fleet: Fleet) -> dict[str, Any]:
    """How far a job is, and its results once it is finished."""
    try:
        status = await fleet.status(job)
    except UnknownJob as error:
        raise HTTPException(404, str(error)) from error
    answers = [row.output async for row in fleet.results(job)] if status.finished else None
    return {"done": status.done, "total": status.total, "answers": answers}
