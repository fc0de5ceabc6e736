"""The route of the history: the recorded work of each day."""

from __future__ import annotations

import time
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
    today = int(time.time() // DAY_S)
    found = []
    for day in range(today - days + 1, today + 1):
        kept = gateway.days.get(day)
        if kept is None:
            kept = await gateway.client.ask(lambda store: store.flight.day(day))  # noqa: B023 - run at once
            gateway.days[day] = kept
        found.append({"day": datetime.fromtimestamp(day * DAY_S, UTC).date().isoformat(), **asdict(kept)})
    return Json({"days": found})
