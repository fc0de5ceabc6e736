"""A schedule as plain JSON: for `argosy schedule list --json`, and for the gateway and its page."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import msgspec

from producers.commands.scheduling.schedule_times import NOT_READ
from producers.commands.scheduling.scheduled_run import described
from results_store.sql.waiting.schedules import Schedule, ScheduleRun


def schedule_view(schedule: Schedule, last: ScheduleRun | None) -> dict[str, Any]:
    """Return a schedule with its last run. `submission` is null if this version does not read its form."""
    try:
        described(schedule)
        submission = msgspec.json.decode(schedule.submission)
    except NOT_READ:
        submission = None
    return asdict(schedule) | {"submission": submission, "last_run": None if last is None else asdict(last)}
