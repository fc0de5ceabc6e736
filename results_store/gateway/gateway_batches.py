"""OpenAI batches: the data of a batch that its job does not have.

Gateways share batches without leases. Each step of a batch may be taken twice, and its end is stored once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import insert, select, update

from results_store.gateway.gateway_files import StoredFile
from results_store.sql.columns import cleaned, text
from results_store.sql.database import Database, Weight
from results_store.sql.result_rows import insert_new
from results_store.sql.schema import gateway_batches, gateway_files


@dataclass(frozen=True, slots=True, kw_only=True)
class FileBatch:
    """A batch of requests, open until `finished_at`. `detail` holds the other fields. Times are Unix seconds."""

    id: str
    tenant: str
    detail: dict[str, Any]
    created_at: float
    finished_at: float | None = None


class GatewayBatches:
    """The batches in the store, as `Store.file_batches`. Another tenant's batch is treated as missing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, batch: FileBatch) -> None:
        """Add a batch; a gateway submits it."""
        row = asdict(batch) | {"tenant": text(batch.tenant), "detail": cleaned(batch.detail)}
        with self._database.write(Weight.ACCEPTED) as connection:
            connection.execute(insert(gateway_batches), [row])

    def find(self, id_: str, *, tenant: str | None) -> FileBatch | None:
        """Return a batch of `tenant`, or of any tenant if that is None."""
        wanted = select(gateway_batches).where(gateway_batches.c.id == id_)
        if tenant is not None:
            wanted = wanted.where(gateway_batches.c.tenant == tenant)
        with self._database.read() as connection:
            row = connection.execute(wanted).mappings().one_or_none()
        return None if row is None else FileBatch(**row)

    def page(self, *, tenant: str | None, after: str | None, limit: int) -> list[FileBatch]:
        """Return batches, newest first. `after` is the id of the last batch on the page before."""
        wanted = select(gateway_batches).order_by(gateway_batches.c.id.desc()).limit(limit)
        if tenant is not None:
            wanted = wanted.where(gateway_batches.c.tenant == tenant)
        if after is not None:
            wanted = wanted.where(gateway_batches.c.id < after)
        with self._database.read() as connection:
            return [FileBatch(**row) for row in connection.execute(wanted).mappings()]

    def unfinished(self) -> list[FileBatch]:
        """Return the open batches of all tenants, oldest first."""
        wanted = select(gateway_batches).where(gateway_batches.c.finished_at.is_(None)).order_by(gateway_batches.c.id)
        with self._database.read() as connection:
            return [FileBatch(**row) for row in connection.execute(wanted).mappings()]

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
        mine = (gateway_batches.c.id == id_, gateway_batches.c.finished_at.is_(None))
        with self._database.write(Weight.ACCEPTED) as connection:
            known = connection.execute(select(gateway_batches.c.detail).where(*mine).with_for_update()).scalar()
            if known is None:
                return None
            if files:
                connection.execute(insert_new(connection, gateway_files), [asdict(file) for file in files])
            changed = update(gateway_batches).where(*mine)
            changed = changed.values(detail={**known, **cleaned(dict(detail))}, finished_at=finished_at)
            row = connection.execute(changed.returning(gateway_batches)).mappings().one()
        return FileBatch(**row)
