"""The route of the history: the recorded work of each day."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from producers.gateway.answers import Json
from producers.gateway.gateway import FleetViewer, Here
from producers.gateway.openapi import api_answers
from producers.gateway.openapi.schema_of import answer_of
from results_store.sql.flight import DAY_S

router = APIRouter(prefix="/api", tags=["operations"])


@router.get("/history", responses=answer_of(api_answers.HISTORY))
async def history(gateway: Here, _: FleetViewer, days: Annotated[int, Query(ge=1, le=366)] = 14) -> Response:
    """Return the recorded batches of each of the last `days` days of UTC, in sums. A purge deletes old batches."""
    found = [
        {"day": datetime.fromtimestamp(day * DAY_S, UTC).date().isoformat(), **asdict(sums)}
        for day, sums in await gateway.days.last(days)
    ]
    return Json({"days": found})
