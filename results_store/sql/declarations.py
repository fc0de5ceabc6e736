"""What an operator has declared of a model while the fleet runs: the settings that hold over those of every worker's file.

One row a model; each declaration has a higher `generation` than the one before. It is `proven` once a worker serves by it; until
then a worker that starts takes the one before, and this one as those that run do. Settings of None are the file's.
"""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Connection, insert, select, update

from results_store.records import Declaration
from results_store.sql.database import Database, Weight
from results_store.sql.schema import declarations

_COLUMNS = tuple(declarations.c)


class Declarations:
    """The declarations of one database. Every method raises StoreUnavailable when that cannot be reached in time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def every(self) -> dict[str, Declaration]:
        """Return what is declared, by model."""
        with self._database.read() as connection:
            rows = connection.execute(select(*_COLUMNS)).mappings()
            return {row["model"]: Declaration(**row) for row in rows}

    def declare(
        self, model: str, settings: dict[str, Any] | None, *, file_digest: str = "", proven: bool = False
    ) -> Declaration:
        """Return the declaration that holds from now on. It is `proven` at once where it takes the last one back."""
        with self._database.write(Weight.ACCEPTED) as connection:
            before = _locked(connection, model)
            values: dict[str, Any] = {
                "generation": before.generation + 1 if before else 1,
                "settings": settings,
                "previous": (before.settings if before.proven else before.previous) if before else None,
                "proven": proven,
                "file_digest": file_digest,
                "declared_at": time.time(),
            }
            if before is None:
                connection.execute(insert(declarations).values(model=model, **values))
            else:
                connection.execute(update(declarations).where(declarations.c.model == model).values(**values))
        return Declaration(model=model, **values)

    def prove(self, declaration: Declaration) -> None:
        """Note that a worker serves by a declaration, unless there is a newer one."""
        this = (declarations.c.model == declaration.model, declarations.c.generation == declaration.generation)
        with self._database.write(Weight.NOTE) as connection:
            connection.execute(update(declarations).where(*this).values(proven=True))


def _locked(connection: Connection, model: str) -> Declaration | None:
    wanted = select(*_COLUMNS).where(declarations.c.model == model).with_for_update()
    row = connection.execute(wanted).mappings().one_or_none()
    return None if row is None else Declaration(**row)
