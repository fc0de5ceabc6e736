"""Routes of operators for keys, tenants and the audit log. Keys that see all tenants may read them."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from producers.gateway.answers import Json
from producers.gateway.gateway import By, FleetViewer, Gateway, Here, Operator
from producers.gateway.keys import checked_rights, new_key
from producers.gateway.openapi import api_answers
from producers.gateway.openapi.schema_of import answer_of
from producers.gateway.problems import Problem
from producers.gateway.routes.jobs import Before, place_of
from producers.gateway.schemas import NewKey, TenantSettings
from producers.wire.connection import checked_tenant
from producers.wire.messages import is_id
from results_store.gateway.api_keys import ApiKey
from results_store.store import Store

router = APIRouter(prefix="/api", tags=["administration"])


@router.get("/audit", responses=answer_of(api_answers.AUDIT))
async def audit(
    gateway: Here,
    _: FleetViewer,
    *,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    before: Before = None,
    text: Annotated[str, Query(max_length=200, pattern=r"^[^\x00]*$")] = "",
) -> Response:
    """List the changes of operators and members, newest first. `next`, if present, asks for the next page.

    `text` limits the entries to those with this text in their name, tenant, action or subject.
    """
    place = place_of(before)
    found = await gateway.client.ask(lambda store: store.audit.newest(limit=limit, before=place, text=text))
    after = f"{found[-1].at!r},{found[-1].id}" if len(found) == limit else None
    return Json({"entries": [asdict(entry) for entry in found], "next": after})


@router.get("/keys", responses=answer_of(api_answers.KEYS))
async def keys(gateway: Here, _: FleetViewer) -> Response:
    """List the keys by name, without their secrets."""
    return Json({"keys": [_view(key) for key in await gateway.client.ask(lambda store: store.keys.all())]})


@router.post("/keys", status_code=201, responses=answer_of(api_answers.MADE_KEY, status=201))
async def add_key(body: NewKey, gateway: Here, _: Operator, by: By) -> Response:
    """Make a key. Only this answer has its text: the store keeps a hash."""
    _check_keys(gateway)
    now = time.time()
    text, key = new_key(
        body.name,
        checked_rights(body.role, body.tenant, all_tenants=body.all_tenants),
        role=body.role,
        all_tenants=body.all_tenants,
        expires_at=None if body.expires_s is None else now + body.expires_s,
        rate_per_s=body.rate_per_s,
        created_at=now,
    )
    if not await gateway.client.ask(lambda store: store.keys.add(key, by=by)):
        remedy = "remove it first, or choose another name"
        raise Problem(409, "KeyExists", f"there is already a key {body.name!r}", field="name", remedy=remedy)
    return Json({**_view(key), "key": text}, 201)


@router.delete("/keys/{key}", responses=answer_of(api_answers.KEYS))
async def remove_key(
    key: Annotated[str, Path(description="The key's `id`.")], gateway: Here, _: Operator, by: By
) -> Response:
    """Remove a key, and list the others. Gateways refuse it within ten seconds; its tenant's jobs stay."""
    _check_keys(gateway)

    def removed(store: Store) -> bool:
        found = store.keys.find(key) if is_id(key) else None
        return found is not None and store.keys.remove(found.name, by=by)

    if not await gateway.client.ask(removed):
        raise Problem(404, "UnknownKey", f"no key with the id {key!r}", remedy="GET /api/keys lists them")
    return await keys(gateway, _)


@router.get("/tenants", responses=answer_of(api_answers.TENANTS))
async def tenants(gateway: Here, _: FleetViewer) -> Response:
    """List the tenants by name, with their settings and about how many of their items are in flight."""

    def read(store: Store) -> list[dict[str, Any]]:
        return [asdict(one) | {"in_flight": store.tenants.in_flight(one.name)} for one in store.tenants.every()]

    return Json({"tenants": await gateway.client.ask(read)})


@router.post("/tenants", responses=answer_of(api_answers.TENANTS))
async def set_tenant(body: TenantSettings, gateway: Here, _: Operator, by: By) -> Response:
    """Set a tenant's weight and limits, and list the tenants. Settings that are left out stay; a limit of 0 is none."""
    name = checked_tenant(body.name, "name")
    limits = {"max_items_per_s": body.max_items_per_s, "max_in_flight": body.max_in_flight}
    changes: dict[str, Any] = {field: value or None for field, value in limits.items() if value is not None}
    if body.weight is not None:
        changes["weight"] = body.weight
    await gateway.client.ask(
        lambda store: store.tenants.configure(replace(store.tenants.enrol(name), **changes), by=by)
    )
    return await tenants(gateway, _)


def _check_keys(gateway: Gateway) -> None:
    """Raise Problem if this gateway asks for no key: any program of its machine could make one that outlives it."""
    if not gateway.settings.auth:
        raise Problem(
            403,
            "KeysNotServed",
            "a gateway with --no-auth changes no keys, since they count at every gateway of the store",
            remedy="use `argosy gateway keys`, or a gateway that asks for keys",
        )


def _view(key: ApiKey) -> dict[str, Any]:
    return {name: value for name, value in asdict(key).items() if name != "secret_hash"}
