"""Routes of operators to pause a model, a task or a tenant, and to resume it."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter
from starlette.responses import Response

from producers.commands.pause_commands import check_name
from producers.gateway.answers import Json
from producers.gateway.gateway import By, FleetViewer, Gateway, Here, Operator
from producers.gateway.openapi import api_answers
from producers.gateway.openapi.schema_of import answer_of
from producers.gateway.schemas import NewPause, Resumption

router = APIRouter(prefix="/api", tags=["operations"])


@router.get("/pauses", responses=answer_of(api_answers.PAUSES))
async def pauses(gateway: Here, _: FleetViewer) -> Response:
    """List the pauses, each with the envelopes that wait for its end."""
    return await _pauses(gateway)


@router.post("/pause", responses=answer_of(api_answers.PAUSES))
async def pause(body: NewPause, gateway: Here, _: Operator, by: By) -> Response:
    """Pause a model, a task or a tenant, and list all pauses. For operators.

    Nothing of it starts from now on. Submissions are accepted and wait; deadlines go on.
    """
    catalogue = await gateway.client.catalogue()
    await gateway.client.ask(lambda store: check_name(body.kind, body.name, catalogue, store))
    await gateway.client.ask(lambda store: store.pauses.pause(body.kind, body.name, body.reason, by=by))
    return await _pauses(gateway)


@router.post("/resume", responses=answer_of(api_answers.PAUSES))
async def resume(body: Resumption, gateway: Here, _: Operator, by: By) -> Response:
    """End a pause, and list the others. Waiting work goes on within seconds. For operators."""
    await gateway.client.ask(lambda store: store.pauses.resume(body.kind, body.name, by=by))
    return await _pauses(gateway)


async def _pauses(gateway: Gateway) -> Response:
    found = await gateway.client.ask(lambda store: store.pauses.every())
    return Json({"pauses": [asdict(one) for one in found]})
