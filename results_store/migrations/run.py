"""Migrate a database to this version's schema, and back."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from alembic import command
from alembic.config import Config

from results_store.errors import StoreError, StoreUnavailable
from results_store.sql.database import Database, Weight

# Any constant that no other program uses in the same database.
_ADVISORY_LOCK = int.from_bytes(b"argosy", "big")


def upgrade(database: Database, revision: str = "head") -> None:
    """Apply the missing revisions up to `revision`, all or none. A second process waits and finds nothing to do."""
    if database.sqlite:
        database.path.parent.mkdir(parents=True, exist_ok=True)
        _use_wal(database)
    _run(database, command.upgrade, revision)


def downgrade(database: Database, revision: str) -> None:
    """Undo the revisions after `revision` (``base``: all). This deletes their tables and columns with all data."""
    _run(database, command.downgrade, revision)


def configuration() -> Config:
    """Return Alembic's configuration, without a file: the scripts are in this package."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _run(database: Database, direction: Callable[[Config, str], None], revision: str) -> None:
    database.open()
    config = configuration()
    with database.write(Weight.ACCEPTED, rebuilding=True) as connection:
        # SQLite's transaction is already the only writer. PostgreSQL's waits here, without limit.
        if not database.sqlite:
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
        config.attributes["connection"] = connection
        direction(config, revision)
        if database.sqlite and (broken := connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()):
            raise StoreError(
                f"{database}: not migrated: {len(broken)} rows of {broken[0][0]} would break a foreign key"
            )


def _use_wal(database: Database) -> None:
    """Switch the file to write-ahead logging, for good. SQLite does not wait for a lock here, so this function does."""
    until = time.monotonic() + database.timeout_s
    while True:
        try:
            with closing(sqlite3.connect(database.path, timeout=database.timeout_s)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise StoreUnavailable(f"{database}: {error}; check that the folder can be written") from error
            time.sleep(0.02)
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{database}: {error}; name another file, or move this one away") from error
