"""Routes of the page: a job's items with their inputs and results, their images, and the caller."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from producers.gateway.answers import Json
from producers.gateway.gateway import Here, Viewer
from producers.gateway.openapi import api_answers
from producers.gateway.openapi.schema_of import answer_of
from producers.gateway.problems import Problem
from producers.gateway.routes.kept_inputs import KeptInputs, in_full, shown
from producers.gateway.schemas import MAX_COUNT
from producers.gateway.views import result_view
from producers.wire.blobs import Blobs
from producers.wire.connection import Connection
from producers.wire.pipelines.plan import Plan
from results_store.records import Result
from results_store.sql.item_numbering import root_of
from results_store.store import Store

router = APIRouter(prefix="/api", tags=["jobs"])

#: Results read for each item of a page. If items have more tasks than this, a page has fewer items.
TASKS = 16

#: Numbers of a vector in a list.
NUMBERS = 64

#: Headers of bytes from a tenant: they are an image of the given type or nothing, and can run or load nothing.
IMAGE_HEADERS = {
    "Cache-Control": "private, max-age=300",
    "Content-Disposition": 'inline; filename="input"',
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Vary": "Authorization",
    "X-Content-Type-Options": "nosniff",
}

Seq = Annotated[int, Path(ge=0, le=MAX_COUNT, description="The item's number in its job.")]


@router.get("/caller", tags=["operations"], responses=answer_of(api_answers.CALLER))
async def who(gateway: Here, caller: Viewer) -> Response:
    """Return the key's tenant, its role, whether it sees all tenants, and whether this gateway requires keys."""
    rights = {"role": caller.role, "operator": caller.operator, "all_tenants": caller.all_tenants}
    return Json({"tenant": caller.tenant, **rights, "keys": gateway.settings.auth})


@router.get("/jobs/{job}/waiting", responses=answer_of(api_answers.WAITING))
async def waiting(job: str, gateway: Here, caller: Viewer) -> Response:
    """Return the models that unfinished items of a job wait for.

    `unserved` is a sentence if no live worker serves some of them; it is null otherwise, and if the broker does not
    answer. `paused` is a sentence if an operator has paused something that the job waits for, and `postponed` if
    results are tried again later; else they are null.
    """
    await gateway.job(job, caller)
    models = await gateway.client.ask(lambda store: store.unfinished_models(job))
    unserved = await gateway.activity.unserved(models) if models else None
    paused, postponed = await gateway.paused(job), await gateway.postponed(job)
    return Json({"models": models, "unserved": unserved, "paused": paused, "postponed": postponed})


@router.get("/jobs/{job}/items", responses=answer_of(api_answers.KEPT_ITEMS))
async def items(
    job: str,
    gateway: Here,
    caller: Viewer,
    limit: Annotated[int, Query(ge=1, le=200)] = 25,
    after_seq: Annotated[int, Query(ge=-1, le=MAX_COUNT)] = -1,
) -> Response:
    """Return a page of a job's items with results, in order.

    Each item has its results, with vectors cut short, and its input if that is kept. `next`, if present, is the
    `after_seq` of the next page. A page of a pipeline ends with the last item of an input; an item has the number of
    its input as `root`, and its results the `step` and the `parts` of lists from which the item is made.
    """
    steps = (await gateway.job(job, caller)).pipeline
    plan = None if steps is None else msgspec.convert(steps, Plan)

    def read(store: Store) -> dict[str, Any]:
        rows = store.results(job, after=(after_seq + 1, ""), limit=(limit + 1) * TASKS)
        groups, more = page_of(rows, limit, whole=len(rows) < (limit + 1) * TASKS)
        if more and len(groups) == 1:  # it may have more tasks than were read
            groups = [store.results_of(job, [groups[0][0].seq])]
        if plan and more:
            groups = whole_trees(groups)
        inputs = _kept(store).of([row for group in groups for row in group])
        found = [_item(group, shown(inputs.get(group[0].seq)), plan) for group in groups]
        return {"items": found, "next": groups[-1][0].seq if more and groups else None}

    return Json(await gateway.client.ask(read))


@router.get("/jobs/{job}/items/{seq}", responses=answer_of(api_answers.KEPT_ITEM))
async def item(job: str, seq: Seq, gateway: Here, caller: Viewer) -> Response:
    """Return an item that has results, with its whole input if that is kept.

    `batches` has the start and the seconds of the forward passes that computed its results, where they are recorded.
    """
    await gateway.job(job, caller)

    def read(store: Store) -> dict[str, Any] | None:
        rows = store.results_of(job, [seq])
        kept = _kept(store)
        if not rows:
            return None
        ran = store.flight.passes({row.batch for row in rows if row.batch is not None})
        passes = {id_: {"started_at": began, "forward_s": took_s} for id_, (began, took_s) in ran.items()}
        return _item(rows, in_full(kept, kept.of(rows).get(seq))) | {"batches": passes}

    return Json(_there(await gateway.client.ask(read), job, seq))


@router.get(
    "/jobs/{job}/items/{seq}/image",
    response_class=Response,
    responses={200: {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}},
)
async def image(job: str, seq: Seq, gateway: Here, caller: Viewer) -> Response:
    """Return the input image of an item: PNG, JPEG, GIF or WebP. 404 if the input is not an image, or is not kept."""
    await gateway.job(job, caller)

    def read(store: Store) -> Response | None:
        kept = _kept(store)
        found = kept.picture(kept.of(store.results_of(job, [seq])).get(seq))
        if found is None:
            return None
        return Response(found.data, media_type=found.size.media_type, headers=IMAGE_HEADERS)

    found = await gateway.client.ask(read)
    if found is None:
        raise Problem(404, "NoImage", f"item {seq} of job {job} has no stored image")
    return found


def page_of(rows: Sequence[Result], limit: int, *, whole: bool) -> tuple[list[list[Result]], bool]:
    """Return the first `limit` items of ordered rows, and whether there are more.

    Unless the rows are the `whole` rest of the job, the last item may lack rows and is left to the next page.
    """
    groups = [list(group) for _, group in groupby(rows, lambda row: row.seq)]
    if not whole and len(groups) > 1:
        del groups[-1]
    return groups[:limit], not whole or len(groups) > limit


def whole_trees(groups: list[list[Result]]) -> list[list[Result]]:
    """Return the items without those of the last input, which may lack some; a single input stays."""
    last = root_of(groups[-1][0].seq) if groups else 0
    return [group for group in groups if root_of(group[0].seq) < last] or groups


def _kept(store: Store) -> KeptInputs:
    return KeptInputs(store, Blobs(Connection().blobs))


def _item(rows: Sequence[Result], given: dict[str, Any], plan: Plan | None = None) -> dict[str, Any]:
    results = [_brief(row) for row in rows]
    found = {"seq": rows[0].seq, "key": rows[0].key, "input": given, "results": results}
    if plan:
        found["root"] = root_of(rows[0].seq)
        for row, view in zip(rows, results, strict=True):
            view["step"], view["parts"] = plan.place(row.seq, row.task)
    return found


def _brief(row: Result) -> dict[str, Any]:
    view = result_view(row)
    if row.vector is not None:
        numbers = view["output"]
        view["output"] = {"vector": numbers[:NUMBERS], "length": len(numbers)}
    return view


def _there(found: dict[str, Any] | None, job: str, seq: int) -> dict[str, Any]:
    if found is None:
        raise Problem(404, "UnknownItem", f"no item {seq} with results in job {job}")
    return found
