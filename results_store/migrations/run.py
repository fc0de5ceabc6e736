"""Migrate a database to this version's schema, and back."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, delete, insert, inspect, select

from results_store.errors import SchemaMismatch, StoreError, StoreUnavailable
from results_store.sql.database import Database, Weight
from results_store.sql.schema import CHUNKS, COMPATIBLE, REVISION, VERSION_TABLE, compatible, is_own, metadata

# Any constant that no other program uses in the same database.
_ADVISORY_LOCK = int.from_bytes(b"argosy", "big")

#: The longest wait, in milliseconds, for a table that others use: a running fleet waits behind it. It is below the
#: server's `deadlock_timeout`, so that in a deadlock the migration gives way and not the fleet. The next try comes
#: after `AGAIN_S`.
LOCK_WAIT_MS, AGAIN_S = 400, 2

#: The time for which a migration tries again.
PATIENCE_S = 120.0

#: Tables that every revision has.
_FIRST_TABLES = {"jobs", "envelopes", "payloads", "results", "batches"}

# lock_not_available and deadlock_detected
_IN_USE = ("55P03", "40P01")


def upgrade(database: Database, revision: str = "head", *, chunks: bool = False) -> None:
    """Apply the missing revisions up to `revision`, all or none. A second process waits and finds nothing to do.

    A new database, and any with `chunks`, refuses code that cannot read results in chunks.
    """
    if database.sqlite:
        database.path.parent.mkdir(parents=True, exist_ok=True)
        _use_wal(database)
    _run(database, command.upgrade, revision, chunks)


def downgrade(database: Database, revision: str) -> None:
    """Undo the revisions after `revision` (``base``: all). This deletes their tables and columns with all data."""
    _run(database, command.downgrade, revision)


def configuration() -> Config:
    """Return Alembic's configuration, without a file: the scripts are in this package."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _run(database: Database, direction: Callable[[Config, str], None], revision: str, chunks: bool = False) -> None:
    """Raises StoreUnavailable if others use a table for `PATIENCE_S` without a pause."""
    database.open()
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return _try(database, direction, revision, chunks)
        except StoreUnavailable as error:
            if _sqlstate(error) not in _IN_USE or time.monotonic() > until:
                raise
            time.sleep(AGAIN_S)


def _try(database: Database, direction: Callable[[Config, str], None], revision: str, chunks: bool) -> None:
    config = configuration()
    with database.write(Weight.ACCEPTED, rebuilding=True) as connection:
        # SQLite's transaction is already the only writer. PostgreSQL's waits here, without limit.
        if not database.sqlite:
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
            # whoever wants a table waits behind the migration, and the migration behind any open transaction
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {LOCK_WAIT_MS}")
        config.attributes["connection"] = connection
        _read_earlier_table(database, connection, config)
        _refuse_newer(database, connection, config)
        _refuse_others_tables(database, connection)
        new = _alembic(connection).get_current_revision() is None
        direction(config, revision)
        _note_compatible(connection, chunks=chunks or new)
        if database.sqlite and (broken := connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()):
            raise StoreError(
                f"{database}: not migrated: {len(broken)} rows of {broken[0][0]} would break a foreign key"
            )


def _sqlstate(error: StoreUnavailable) -> str | None:
    return getattr(getattr(error.__cause__, "orig", None), "sqlstate", None)


def _read_earlier_table(database: Database, connection: Connection, config: Config) -> None:
    """Copy the revision of a database from before 0010 to Alembic's present table. Raises StoreError."""
    tables = inspect(connection).get_table_names()
    if compatible.name in tables and VERSION_TABLE not in tables:
        found = connection.execute(select(compatible.c.version_num)).scalar()
        # other programs number their revisions like ours
        if found is not None and not (found in _known(config) and set(tables) >= _FIRST_TABLES):
            problem = f"another program keeps its revision ({found}) in the table {compatible.name}"
            raise StoreError(f"{database}: {problem}; {_elsewhere(database)}")
        if found is not None:
            _alembic(connection).stamp(ScriptDirectory.from_config(config), found)


def _refuse_others_tables(database: Database, connection: Connection) -> None:
    """Raise StoreError if a database without a revision of ours has tables with the names of ours."""
    if _alembic(connection).get_current_revision() is None:
        ours = {*metadata.tables} - {compatible.name}
        if taken := sorted(ours.intersection(inspect(connection).get_table_names())):
            problem = f"another program has a table {taken[0]} in it"
            raise StoreError(f"{database}: {problem}; {_elsewhere(database)}")


def _elsewhere(database: Database) -> str:
    own = "another file" if database.sqlite else "a schema of its own: ?options=-csearch_path%3Dargosy"
    return f"name {own} in the store's URL"


def _refuse_newer(database: Database, connection: Connection, config: Config) -> None:
    """Raise SchemaMismatch if a newer version has migrated the database."""
    found = _alembic(connection).get_current_revision()
    if found is not None and found not in _known(config):
        raise SchemaMismatch(
            f"{database}: the schema is {found}, newer than this version's {REVISION}; upgrade argosy here"
        )


def _known(config: Config) -> set[str]:
    return {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}


def _note_compatible(connection: Connection, *, chunks: bool) -> None:
    """Note the oldest revision whose code works with the database: after a downgrade, only its own.

    That is `CHUNKS` once workers may store `chunks`. A revision of another program, which came later, is left alone.
    """
    revision = _alembic(connection).get_current_revision()
    compatible.create(connection, checkfirst=True)
    noted = connection.execute(select(compatible.c.version_num)).scalar()
    chunks = chunks or (noted is not None and is_own(noted) and noted >= CHUNKS)
    oldest = None if revision is None else min(revision, CHUNKS if chunks else COMPATIBLE)
    if noted != oldest and (noted is None or is_own(noted)):
        connection.execute(delete(compatible))
        if oldest is not None:
            connection.execute(insert(compatible).values(version_num=oldest))


def _alembic(connection: Connection) -> MigrationContext:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})


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
