"""Files that the gateway's callers upload or that the gateway makes for them, stored and read in parts."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sqlalchemy import delete, insert, select, update

from results_store.sql.columns import text
from results_store.sql.database import Database, Weight
from results_store.sql.schema import gateway_file_parts, gateway_files


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file without its content. It is complete, and visible to its owner, once `stored_at` is set."""

    id: str
    tenant: str
    name: str
    purpose: str
    created_at: float
    bytes: int = 0
    stored_at: float | None = None


class GatewayFiles:
    """The files in the store, as `Store.files`. Another tenant's file is treated as missing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, file: StoredFile) -> None:
        """Begin a file. Nobody sees it before `finish`."""
        row = {name: text(value) if isinstance(value, str) else value for name, value in asdict(file).items()}
        with self._database.write(Weight.NOTE) as connection:
            connection.execute(insert(gateway_files), [row])

    def append(self, id_: str, number: int, data: bytes) -> None:
        """Store the next part of a file that was begun."""
        with self._database.write(Weight.NOTE) as connection:
            connection.execute(insert(gateway_file_parts), [{"file": id_, "number": number, "data": data}])

    def finish(self, id_: str, *, size: int, at: float) -> None:
        """Complete a file: from here on its owner sees it."""
        with self._database.write(Weight.ACCEPTED) as connection:
            mine = gateway_files.c.id == id_
            connection.execute(update(gateway_files).where(mine).values(bytes=size, stored_at=at))

    def find(self, id_: str, *, tenant: str | None) -> StoredFile | None:
        """Return a complete file of `tenant`, or of any tenant if that is None."""
        wanted = select(gateway_files).where(gateway_files.c.id == id_, gateway_files.c.stored_at.is_not(None))
        if tenant is not None:
            wanted = wanted.where(gateway_files.c.tenant == tenant)
        with self._database.read() as connection:
            row = connection.execute(wanted).mappings().one_or_none()
        return None if row is None else StoredFile(**row)

    def page(
        self, *, tenant: str | None, purpose: str | None, after: str | None, limit: int, newest_first: bool = True
    ) -> list[StoredFile]:
        """Return complete files. `after` is the id of the last file on the page before."""
        key = gateway_files.c.id
        wanted = select(gateway_files).where(gateway_files.c.stored_at.is_not(None)).limit(limit)
        wanted = wanted.order_by(key.desc() if newest_first else key)
        if tenant is not None:
            wanted = wanted.where(gateway_files.c.tenant == tenant)
        if purpose is not None:
            wanted = wanted.where(gateway_files.c.purpose == purpose)
        if after is not None:
            wanted = wanted.where(key < after if newest_first else key > after)
        with self._database.read() as connection:
            return [StoredFile(**row) for row in connection.execute(wanted).mappings()]

    def part(self, id_: str, number: int) -> bytes | None:
        """Return a part of a file; None after its end."""
        parts = gateway_file_parts.c
        wanted = select(parts.data).where(parts.file == id_, parts.number == number)
        with self._database.read() as connection:
            return connection.execute(wanted).scalar()

    def remove(self, id_: str) -> None:
        """Remove a file, complete or not."""
        with self._database.write(Weight.NOTE) as connection:
            connection.execute(delete(gateway_file_parts).where(gateway_file_parts.c.file == id_))
            connection.execute(delete(gateway_files).where(gateway_files.c.id == id_))

    def remove_unfinished(self, *, begun_before: float) -> int:
        """Remove the remains of interrupted uploads; return their number."""
        abandoned = (gateway_files.c.stored_at.is_(None), gateway_files.c.created_at < begun_before)
        with self._database.read() as connection:
            ids = list(connection.execute(select(gateway_files.c.id).where(*abandoned)).scalars())
        for id_ in ids:
            self.remove(id_)
        return len(ids)
