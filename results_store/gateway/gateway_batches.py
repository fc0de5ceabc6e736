"""Batches of requests, as OpenAI's API has them: one gateway at a time works on each, under a lease."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, or_, select, update

from results_store.sql.columns import cleaned, text
from results_store.sql.database import Database, Weight
from results_store.sql.schema import gateway_batches


@dataclass(frozen=True, slots=True, kw_only=True)
class FileBatch:
    """One batch of requests. `detail` is what its owner sees of it beside `status`; times are Unix seconds."""

    id: str
    tenant: str
    status: str
    detail: dict[str, Any]
    created_at: float
    cancelled_at: float | None = None
    finished_at: float | None = None


_SEEN = [gateway_batches.c[name] for name in FileBatch.__slots__]


class GatewayBatches:
    """The store's batches of requests; `Store.file_batches` has them. Another tenant's is as one that is not there."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, batch: FileBatch) -> None:
        """Accept a batch; a gateway takes it up."""
        row = {name: getattr(batch, name) for name in FileBatch.__slots__}
        row |= {"tenant": text(batch.tenant), "detail": cleaned(batch.detail)}
        with self._database.write(Weight.ACCEPTED) as connection:
            connection.execute(insert(gateway_batches), [row])

    def find(self, id_: str, *, tenant: str | None) -> FileBatch | None:
        """Return a batch of `tenant`, or of anybody if that is None."""
        wanted = select(*_SEEN).where(gateway_batches.c.id == id_)
        if tenant is not None:
            wanted = wanted.where(gateway_batches.c.tenant == tenant)
        with self._database.read() as connection:
            row = connection.execute(wanted).mappings().one_or_none()
        return None if row is None else FileBatch(**row)

    def page(self, *, tenant: str | None, after: str | None, limit: int) -> list[FileBatch]:
        """Return batches, the newest first; `after` is the id of the last one of the page before."""
        wanted = select(*_SEEN).order_by(gateway_batches.c.id.desc()).limit(limit)
        if tenant is not None:
            wanted = wanted.where(gateway_batches.c.tenant == tenant)
        if after is not None:
            wanted = wanted.where(gateway_batches.c.id < after)
        with self._database.read() as connection:
            return [FileBatch(**row) for row in connection.execute(wanted).mappings()]

    def cancel(self, id_: str, at: float) -> None:
        """Ask for the end of an unfinished batch; who works on it sees to it."""
        mine = (gateway_batches.c.id == id_, gateway_batches.c.finished_at.is_(None))
        with self._database.write(Weight.ACCEPTED) as connection:
            connection.execute(
                update(gateway_batches)
                .where(*mine, gateway_batches.c.cancelled_at.is_(None))
                .values(cancelled_at=at, status="cancelling")
            )

    # --- who works on them ---

    def take(self, worker: str, *, now: float, leased_until: float, limit: int) -> list[FileBatch]:
        """Take up to `limit` unfinished batches that nobody works on, the oldest first."""
        batches = gateway_batches.c
        free = or_(batches.leased_until.is_(None), batches.leased_until < now)
        chosen = select(batches.id).where(batches.finished_at.is_(None), free).order_by(batches.id).limit(limit)
        with self._database.write(Weight.NOTE) as connection:
            ids = list(connection.execute(chosen.with_for_update(skip_locked=True)).scalars())
            taken = update(gateway_batches).where(batches.id.in_(ids)).values(worker=worker, leased_until=leased_until)
            rows = connection.execute(taken.returning(*_SEEN)).mappings()
            return sorted((FileBatch(**row) for row in rows), key=lambda batch: batch.id)

    def renew(self, id_: str, worker: str, *, leased_until: float | None) -> FileBatch | None:
        """Prolong the worker's lease, or with None end it; return the batch, or None if another has it now."""
        batches = gateway_batches.c
        mine = update(gateway_batches).where(batches.id == id_, batches.worker == worker)
        with self._database.write(Weight.NOTE) as connection:
            changed = mine.values(leased_until=leased_until).returning(*_SEEN)
            row = connection.execute(changed).mappings().one_or_none()
        return None if row is None else FileBatch(**row)

    def record(self, batch: FileBatch, worker: str) -> bool:
        """Store how far a batch is; return False, changing nothing, if another worker has it now, or if its owner has
        cancelled it meanwhile and `batch` does not say so."""
        batches = gateway_batches.c
        mine = update(gateway_batches).where(batches.id == batch.id, batches.worker == worker)
        if batch.status not in ("cancelling", "cancelled"):
            mine = mine.where(batches.cancelled_at.is_(None))
        values = {"status": batch.status, "detail": cleaned(batch.detail), "finished_at": batch.finished_at}
        with self._database.write(Weight.RESULTS) as connection:
            return connection.execute(mine.values(**values)).rowcount > 0
