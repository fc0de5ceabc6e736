"""OpenAI batches as they stood in the database before they were jobs, for tests of what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from results_store.sql.schema import Json, gateway_file_parts, gateway_files, jobs

#: The revision that reads them.
REVISION = "0009"

_BATCHES = sa.table(
    "gateway_batches",
    *(sa.column(name) for name in ("id", "tenant", "status", "created_at", "cancelled_at", "finished_at")),
    *(sa.column(name) for name in ("worker", "leased_until")),
    sa.column("detail", Json),
)


def insert_batch(
    connection: sa.Connection, id_: str, status: str, detail: Mapping[str, Any], **columns: object
) -> None:
    """Insert a batch of the tenant `ours`, created at 100 with a window of 1,000 seconds."""
    base = {"endpoint": "/v1/embeddings", "input_file_id": f"file-{id_[6:]}", "metadata": None, "expires_at": 1100.0}
    row = {"id": id_, "tenant": "ours", "status": status, "created_at": 100.0, "detail": {**base, **detail}, **columns}
    connection.execute(sa.insert(_BATCHES).values(row))


def insert_file(connection: sa.Connection, id_: str, content: bytes, *, purpose: str = "batch") -> None:
    """Insert a whole file of the tenant `ours`."""
    row = {"id": id_, "tenant": "ours", "name": "a.jsonl", "purpose": purpose, "created_at": 100.0}
    connection.execute(sa.insert(gateway_files).values({**row, "bytes": len(content), "stored_at": 101.0}))
    connection.execute(sa.insert(gateway_file_parts).values(file=id_, number=0, data=content))


def insert_job(connection: sa.Connection, id_: str, batch: str) -> None:
    """Insert the job that a gateway had begun for a batch, with two items to compute."""
    row = {"id": id_, "name": batch, "priority": 9, "idempotency_key": f"ours\x1f{batch}", "created_at": 100.0}
    connection.execute(sa.insert(jobs).values({**row, "tenant": "ours", "items": 2, "total": 2}))


def take(connection: sa.Connection, worker: str, *, now: float, leased_until: float) -> list[str]:
    """Lease all free open batches, by the statements of that version; return their ids."""
    batches = _BATCHES.c
    free = sa.or_(batches.leased_until.is_(None), batches.leased_until < now)
    chosen = sa.select(batches.id).where(batches.finished_at.is_(None), free).with_for_update(skip_locked=True)
    ids = list(connection.execute(chosen).scalars())
    taken = sa.update(_BATCHES).where(batches.id.in_(ids)).values(worker=worker, leased_until=leased_until)
    connection.execute(taken)
    return ids


def cancel(connection: sa.Connection, id_: str, at: float) -> None:
    """Ask for the end of a batch, by the statement of that version."""
    mine = sa.update(_BATCHES).where(_BATCHES.c.id == id_, _BATCHES.c.finished_at.is_(None))
    connection.execute(mine.values(cancelled_at=at, status="cancelling"))


def seen(connection: sa.Connection, id_: str) -> tuple[str, float | None]:
    """Return a batch's status and the time of its cancellation, as that version reads them."""
    wanted = sa.select(_BATCHES.c.status, _BATCHES.c.cancelled_at).where(_BATCHES.c.id == id_)
    status, cancelled_at = connection.execute(wanted).one()
    return status, cancelled_at
