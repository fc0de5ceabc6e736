"""OpenAI batches: the data of a batch that its job does not have.

Gateways share batches without leases. Each step of a batch may be taken twice, and its end is stored once. Gateways of
revision 0009 lease the batches that they work on: these are theirs until their lease is over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, insert, or_, select, update

from results_store.gateway.gateway_files import StoredFile
from results_store.sql.columns import cleaned, text
from results_store.sql.database import Database, Weight
from results_store.sql.result_rows import insert_new
from results_store.sql.schema import gateway_batches, gateway_file_parts, gateway_files, jobs

#: The end of the lease of a batch that no gateway of revision 0009 may take.
NEVER = 1e15

_OPEN = gateway_batches.c.finished_at.is_(None)
_NEWER = gateway_batches.c.leased_until == NEVER


@dataclass(frozen=True, slots=True, kw_only=True)
class FileBatch:
    """A batch of requests, open until `finished_at`. `detail` holds the other fields. Times are Unix seconds."""

    id: str
    tenant: str
    detail: dict[str, Any]
    created_at: float
    finished_at: float | None = None

    @property
    def status(self) -> str:
        """OpenAI's name for the state of the batch."""
        return status_of(self.detail, self.finished_at)


def status_of(detail: Mapping[str, Any], finished_at: float | None) -> str:
    """Return OpenAI's name for the state of a batch."""
    if finished_at is None:
        passed = ("cancelling", "finalizing", "in_progress")
        return next((state for state in passed if detail.get(f"{state}_at") is not None), "validating")
    if detail.get("cancelling_at") is not None:
        return "cancelled"
    return "failed" if detail.get("errors") else "expired" if detail.get("expired") else "completed"


class GatewayBatches:
    """The batches in the store, as `Store.file_batches`. Another tenant's batch is treated as missing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, batch: FileBatch) -> None:
        """Add a batch; a gateway submits it."""
        row = asdict(batch) | {"tenant": text(batch.tenant), "detail": cleaned(batch.detail)}
        row |= {"status": batch.status, "leased_until": NEVER}
        with self._database.write(Weight.ACCEPTED) as connection:
            connection.execute(insert(gateway_batches), [row])

    def find(self, id_: str, *, tenant: str | None) -> FileBatch | None:
        """Return a batch of `tenant`, or of any tenant if that is None."""
        wanted = select(gateway_batches).where(gateway_batches.c.id == id_)
        if tenant is not None:
            wanted = wanted.where(gateway_batches.c.tenant == tenant)
        with self._database.read() as connection:
            row = connection.execute(wanted).mappings().one_or_none()
        return None if row is None else _batch(row)

    def page(self, *, tenant: str | None, after: str | None, limit: int) -> list[FileBatch]:
        """Return batches, newest first. `after` is the id of the last batch on the page before."""
        wanted = select(gateway_batches).order_by(gateway_batches.c.id.desc()).limit(limit)
        if tenant is not None:
            wanted = wanted.where(gateway_batches.c.tenant == tenant)
        if after is not None:
            wanted = wanted.where(gateway_batches.c.id < after)
        with self._database.read() as connection:
            return [_batch(row) for row in connection.execute(wanted).mappings()]

    def unfinished(self) -> list[FileBatch]:
        """Return the open batches of all tenants, oldest first, without those of gateways of revision 0009."""
        wanted = select(gateway_batches).where(_OPEN, _NEWER).order_by(gateway_batches.c.id)
        with self._database.read() as connection:
            return [_batch(row) for row in connection.execute(wanted).mappings()]

    def note(
        self,
        id_: str,
        detail: Mapping[str, Any],
        *,
        finished_at: float | None = None,
        files: Sequence[StoredFile] = (),
    ) -> FileBatch | None:
        """Add to the detail of an open batch. With `finished_at`, end the batch and add its output `files`.

        Return the updated batch, or None, without a change, if it has ended already.
        """
        mine = (gateway_batches.c.id == id_, _OPEN)
        with self._database.write(Weight.ACCEPTED) as connection:
            known = connection.execute(select(gateway_batches).where(*mine).with_for_update()).mappings().one_or_none()
            if known is None:
                return None
            if files:
                connection.execute(insert_new(connection, gateway_files), [asdict(file) for file in files])
            new = {**_batch(known).detail, **cleaned(dict(detail))}
            values = {"detail": new, "finished_at": finished_at, "status": status_of(new, finished_at)}
            values["cancelled_at"] = new.get("cancelling_at")
            changed = update(gateway_batches).where(*mine).values(values).returning(gateway_batches)
            return _batch(connection.execute(changed).mappings().one())

    def adopt(self, *, now: float) -> int:
        """Begin the open batches anew that a gateway of revision 0009 has left. Return their number.

        Their items were numbered and named otherwise, so their jobs are cancelled.
        """
        batches = gateway_batches.c
        left = or_(batches.leased_until.is_(None), batches.leased_until < now)
        found = select(gateway_batches).where(_OPEN, left).with_for_update(skip_locked=True)
        with self._database.read() as connection:
            if connection.execute(select(batches.id).where(_OPEN, left).limit(1)).scalar() is None:
                return 0
        with self._database.write(Weight.ACCEPTED) as connection:
            rows = connection.execute(found).mappings().all()
            for row in rows:
                detail = begun_anew(connection, row, now)
                values = {"detail": detail, "status": status_of(detail, None), "worker": None, "leased_until": NEVER}
                connection.execute(update(gateway_batches).where(batches.id == row["id"]).values(values))
        return len(rows)


def _batch(row: RowMapping) -> FileBatch:
    """Return the batch of a row. Gateways of revision 0009 write parts of the detail into columns."""
    detail = dict(row["detail"])
    if row["cancelled_at"] is not None:
        detail.setdefault("cancelling_at", row["cancelled_at"])
    if row["status"] == "expired":
        detail["expired"] = True
    return FileBatch(
        id=row["id"], tenant=row["tenant"], detail=detail, created_at=row["created_at"], finished_at=row["finished_at"]
    )


def begun_anew(connection: Connection, row: RowMapping, now: float) -> dict[str, Any]:
    """Cancel the job of an open batch, remove its begun files, and return the detail of a batch that begins now.

    Its window is as long as it was.
    """
    key = f"{row['tenant']}\x1f{row['id']}" if row["tenant"] else row["id"]
    mine = jobs.c.idempotency_key == key
    unfinished = (jobs.c.finished_at.is_(None), jobs.c.cancelled_at.is_(None))
    connection.execute(update(jobs).where(mine, *unfinished).values(cancelled_at=now))
    connection.execute(update(jobs).where(mine).values(idempotency_key=None))
    begun = [f"file-{row['id'].removeprefix('batch_')}-{kind}" for kind in ("output", "error")]
    connection.execute(delete(gateway_file_parts).where(gateway_file_parts.c.file.in_(begun)))
    connection.execute(delete(gateway_files).where(gateway_files.c.id.in_(begun)))
    detail = row["detail"]
    kept = {name: detail[name] for name in ("endpoint", "input_file_id", "metadata")}
    if row["cancelled_at"] is not None:
        kept["cancelling_at"] = row["cancelled_at"]
    expires_at = now + detail["expires_at"] - row["created_at"]
    return {**kept, "expires_at": expires_at, "counts": {"total": 0, "completed": 0, "failed": 0}}
