"""Settings of a model that an operator declares while the fleet runs. They override every worker's file.

Each model has a row; each declaration has a higher `generation` than the last. A declaration is `proven` once a
worker serves by it. Until then a starting worker uses the previous settings, and then changes to these like the running
workers. Settings of None are the file's.
"""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from results_store.records import Declaration
from results_store.sql.auditing.audit_log import Actor, note
from results_store.sql.database import Database, Weight
from results_store.sql.schema import declarations

_COLUMNS = declarations.c


class Declarations:
    """The declarations in a database. Methods raise StoreUnavailable if the database cannot be reached in time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def every(self) -> dict[str, Declaration]:
        """Return the declarations by model."""
        with self._database.read() as connection:
            rows = connection.execute(select(declarations)).mappings()
            return {row["model"]: Declaration(**row) for row in rows}

    def declare(
        self,
        model: str,
        settings: dict[str, Any] | None,
        *,
        file_digest: str = "",
        proven: bool = False,
        by: Actor | None = None,
    ) -> Declaration:
        """Declare settings and return the declaration. Pass `proven` if it takes back the previous declaration."""
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
            note(connection, by, "models reload", f"model:{model}", generation=values["generation"])
        return Declaration(model=model, schemas=before.schemas if before else None, **values)

    def schemas(self) -> dict[str, dict[str, Any]]:
        """Return the schemas of tasks by model, where a worker has described the model."""
        with self._database.read() as connection:
            rows = connection.execute(select(_COLUMNS.model, _COLUMNS.schemas).where(_COLUMNS.schemas.is_not(None)))
            return {row.model: row.schemas for row in rows}

    def describe(self, model: str, schemas: dict[str, Any]) -> None:
        """Set the schemas of a model's tasks. Its settings stay as they are."""
        new = {"generation": 0, "proven": True, "file_digest": "", "declared_at": time.time()}
        with self._database.write(Weight.NOTE) as connection:
            insert_ = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
            values = insert_(declarations).values(model=model, schemas=schemas, **new)
            connection.execute(values.on_conflict_do_update(index_elements=["model"], set_={"schemas": schemas}))

    def prove(self, declaration: Declaration) -> None:
        """Record that a worker serves by a declaration, unless there is a newer one."""
        this = (declarations.c.model == declaration.model, declarations.c.generation == declaration.generation)
        with self._database.write(Weight.NOTE) as connection:
            connection.execute(update(declarations).where(*this).values(proven=True))


def _locked(connection: Connection, model: str) -> Declaration | None:
    wanted = select(declarations).where(declarations.c.model == model).with_for_update()
    row = connection.execute(wanted).mappings().one_or_none()
    return None if row is None else Declaration(**row)
