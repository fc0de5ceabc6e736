"""Rows of the store as plain JSON for callers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from producers.wire.messages import Priority
from results_store.export.text_export import plain
from results_store.gateway.webhooks import Webhook
from results_store.records import JobStatus, Result


def job_view(job: JobStatus) -> dict[str, Any]:
    """Return a job with its progress. A result is counted for each item and task."""
    return {
        **asdict(job),
        "priority": priority_name(job.priority),
        "done": job.done,
        "finished": job.finished,
        "state": job.state,
    }


def webhook_view(webhook: Webhook) -> dict[str, Any]:
    """Return the state of a job's webhook, without its path and query, which may hold a secret of the receiver."""
    state = "waiting" if webhook.next_at is not None else "given up" if webhook.error else "delivered"
    return {
        "host": webhook.host,
        "state": "retrying" if state == "waiting" and webhook.attempts else state,
        "attempts": webhook.attempts,
        "attempted_at": webhook.attempted_at,
        "status": webhook.status,
        "error": webhook.error,
    }


def priority_name(value: int) -> str | int:
    """Return a priority's name, or the number itself if another program's envelope has an unknown priority."""
    return Priority(value).name.lower() if value in list(Priority) else value


def result_view(result: Result) -> dict[str, Any]:
    """Return a result without its traceback, which only operators see."""
    row = plain(result)
    if row["error"] and "traceback" in row["error"]:
        row["error"] = {name: value for name, value in row["error"].items() if name != "traceback"}
    return row


def item_view(id_: str, rows: Sequence[Result], expected: int) -> dict[str, Any]:
    """Return an item with its results so far. It is done when it has as many results as tasks."""
    return {"id": id_, "done": len(rows) >= expected, "results": [result_view(row) for row in rows]}
