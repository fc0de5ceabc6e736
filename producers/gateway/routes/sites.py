"""Routes of the sites: each tells its counts, and those who may see them list them."""

from __future__ import annotations

import time
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path
from starlette.responses import Response

from producers.gateway.answers import Json
from producers.gateway.gateway import Here, Member, Viewer
from producers.gateway.openapi import api_answers
from producers.gateway.openapi.schema_of import answer_of
from producers.gateway.problems import Problem
from producers.gateway.schemas import ReportedSite
from producers.wire.edge.told_sites import ToldSite, TooManySites, tell_site, told_sites

router = APIRouter(prefix="/api", tags=["operations"])

Name = Annotated[str, Path(description="The site's name.", pattern=r"^[A-Za-z0-9._-]{1,64}$")]


@router.get("/sites", responses=answer_of(api_answers.SITES))
async def sites(gateway: Here, caller: Viewer) -> Response:
    """List the sites by tenant and name, each with what it told last. A tenant's key sees the tenant's own."""
    found = [one for one in await gateway.client.ask_broker(told_sites) if caller.sees(one.tenant)]
    return Json({"sites": [_view(one) for one in found]})


@router.put("/sites/{name}", responses=answer_of(api_answers.SITE))
async def tell(name: Name, body: ReportedSite, gateway: Here, caller: Member) -> Response:
    """Tell the counts and models of a site, as `argosy edge` does every minute. The site is the key's tenant's."""
    told = ToldSite(tenant=caller.tenant, site=name, at=time.time(), **body.model_dump())
    try:
        await gateway.client.ask_broker(lambda redis: tell_site(redis, told))
    except TooManySites as error:
        raise Problem(429, "TooManySites", str(error), remedy="use the names of sites that tell no more") from error
    return Json(_view(told))


def _view(site: ToldSite) -> dict[str, Any]:
    shares = {"away": site.away, "share_sent": site.share_sent, "agreement": site.agreement}
    return {**msgspec.structs.asdict(site), **shares}
