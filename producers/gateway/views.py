"""Rows of the store as callers see them: plain JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from producers.wire.messages import Priority
from results_store.export.text_export import plain
from results_store.records import JobStatus, Result


def job_view(job: JobStatus) -> dict[str, Any]:
    """Return a job with its progress; the counts are of results, one for each item and task."""
    return {
        **asdict(job),
        "priority": priority_name(job.priority),
        "done": job.done,
        "finished": job.finished,
        "state": job.state,
    }


def priority_name(value: int) -> str | int:
    """Return a priority's name, or what it is of another program's envelopes."""
    return Priority(value).name.lower() if value in list(Priority) else value


def result_view(result: Result) -> dict[str, Any]:
    """Return one result; a traceback stays with the operators."""
    row = plain(result)
    if row["error"] and "traceback" in row["error"]:
        row["error"] = {name: value for name, value in row["error"].items() if name != "traceback"}
    return row


def item_view(id_: str, rows: Sequence[Result], expected: int) -> dict[str, Any]:
    """Return one item with the results that it has; it is done when it has as many as it was submitted for."""
    return {"id": id_, "done": len(rows) >= expected, "results": [result_view(row) for row in rows]}
