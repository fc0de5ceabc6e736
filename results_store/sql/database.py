"""The connection to the database: engine, transactions, and the translation of driver errors."""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from enum import Enum, auto
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, make_url, select, table
from sqlalchemy.sql import column

from results_store.errors import SchemaMismatch, StoreError, StoreUnavailable
from results_store.sql.schema import REVISION

MIGRATE = "run `argosy migrate`"


class Weight(Enum):
    """How durable a commit is against a power cut. A killed process never undoes a commit.

    ``ACCEPTED``: a power cut undoes nothing, because only the store has the submitted items. ``RESULTS``: on PostgreSQL
    it undoes nothing, unless the server is configured otherwise. On SQLite it may undo the last moments: results
    together with their envelopes' `done` marks, so these envelopes are delivered and computed again (measured: 40,000
    rows/s, not 22,000, an envelope per transaction). ``NOTE``: claims, leases and publication marks may be undone on
    both.
    """

    ACCEPTED = auto()
    RESULTS = auto()
    NOTE = auto()


class Database:
    """The connections of a process to a database, for any number of threads."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self.url = parse_url(url)
        self.timeout_s = timeout_s
        self._engine: Engine | None = None
        self._engines: dict[tuple[Weight, bool], Engine] = {}  # the same engine with options per kind of transaction
        # SQLite has one writer at a time and makes the others poll; threads of one process wait for this lock instead.
        self._turn = threading.Lock()

    def __str__(self) -> str:
        return self.url.render_as_string(hide_password=True)

    @property
    def sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    @property
    def path(self) -> Path:
        """The file of an SQLite database."""
        return Path(self.url.database or "")

    def open(self) -> None:
        """Create the engine. The first use opens the first connection."""
        if self._engine is None:
            self._engine = _sqlite(self.url, self.timeout_s) if self.sqlite else _postgresql(self.url, self.timeout_s)

    def close(self) -> None:
        engine, self._engine = self._engine, None
        self._engines.clear()
        if engine is not None:
            engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a connection for reading, each statement on its own. Raises StoreUnavailable."""
        with self._translated(), self._opened().connect() as connection:
            yield connection if self.sqlite else connection.execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def cursor(self) -> Iterator[Any]:
        """Open a bare cursor of SQLite's driver, to read a single row. Raises StoreUnavailable."""
        with self._translated(), closing(self._opened().raw_connection()) as connection:
            yield connection.cursor()

    @contextmanager
    def write(self, weight: Weight, *, rebuilding: bool = False) -> Iterator[Connection]:
        """Open a transaction, committed if the block ends without an error. Raises StoreUnavailable.

        `rebuilding`, for migrations, lets SQLite drop a table without cascading to the tables that refer to it.
        """
        with self._translated(), self._my_turn(), self._engine_for(weight, rebuilding).begin() as connection:
            yield connection

    def _engine_for(self, weight: Weight, rebuilding: bool) -> Engine:
        engine = self._opened()
        if (weight, rebuilding) not in self._engines:
            options = engine.execution_options(argosy_write=weight, argosy_rebuilding=rebuilding)
            self._engines[weight, rebuilding] = options
        return self._engines[weight, rebuilding]

    def _opened(self) -> Engine:
        if self._engine is None:
            raise StoreError(f"the store {self} is not open; call open() first")
        return self._engine

    @contextmanager
    def _my_turn(self) -> Iterator[None]:
        if not self.sqlite:
            yield
            return
        if not self._turn.acquire(timeout=self.timeout_s):
            raise StoreUnavailable(f"{self}: other threads hold the write lock for {self.timeout_s:g} s; try again")
        try:
            yield
        finally:
            self._turn.release()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except _errors() as error:
            raise translate(error, str(self)) from error


def open_current(database: Database) -> None:
    """Raise SchemaMismatch, with the command to run, unless the database has this version's schema."""
    database.open()
    try:
        _check_revision(database)
    except BaseException:
        database.close()
        raise


def _check_revision(database: Database) -> None:
    if database.sqlite and not database.path.exists():
        raise SchemaMismatch(f"{database}: there is no database yet; {MIGRATE}")
    with database.read() as connection:
        found = connection.execute(select(column("version_num")).select_from(table("alembic_version"))).scalar()
    if found != REVISION:
        newer = found is not None and found > REVISION
        remedy = "upgrade argosy here: the database is newer" if newer else MIGRATE
        raise SchemaMismatch(f"{database}: the schema is {found}, this version needs {REVISION}; {remedy}")


def _errors() -> tuple[type[Exception], ...]:
    """Return SQLAlchemy's error types, and the drivers' own for statements that bypass SQLAlchemy."""
    psycopg = sys.modules.get("psycopg")  # imported once a PostgreSQL store is open
    return (exc.SQLAlchemyError, sqlite3.Error, *([] if psycopg is None else [psycopg.Error]))


def parse_url(url: str) -> URL:
    """Return the SQLAlchemy URL of ``sqlite:///path`` or ``postgresql://…``. Raises StoreError without the password."""
    try:
        parsed = make_url(url)
    except (exc.ArgumentError, ValueError):
        raise StoreError(
            "the store's URL cannot be read; write sqlite:///path or postgresql://user@host/name"
        ) from None
    backend = parsed.drivername.partition("+")[0]
    if backend in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise StoreError(f"no store of the kind {backend!r}; write sqlite:///path or postgresql://user@host/name")
    if parsed.database in (None, "", ":memory:"):
        raise StoreError("a store in memory is lost between connections; write sqlite:///path")
    return parsed.set(drivername="sqlite+pysqlite")


def _sqlite(url: URL, timeout_s: float) -> Engine:
    # The driver starts no transaction by itself (isolation_level None); `_begin` does, with the right kind.
    engine = create_engine(
        url,
        connect_args={"timeout": timeout_s, "isolation_level": None},
        pool_size=4,
        max_overflow=28,
        pool_timeout=timeout_s,
        hide_parameters=True,
    )

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA journal_size_limit = 67108864")  # lets a large WAL shrink again

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        weight = options.get("argosy_write")
        if weight is None:
            return  # a single statement reads its own snapshot
        cursor = connection.connection.cursor()
        _pragma(connection, cursor, "foreign_keys", "OFF" if options.get("argosy_rebuilding") else "ON")
        # In WAL mode FULL adds an fsync per commit, NORMAL none. Both leave the file whole after a power cut.
        _pragma(connection, cursor, "synchronous", "FULL" if weight is Weight.ACCEPTED else "NORMAL")
        # IMMEDIATE waits for the write lock now. A transaction that starts by reading could not wait later, only fail.
        cursor.execute("BEGIN IMMEDIATE")
        cursor.close()

    return engine


def _pragma(connection: Connection, cursor: Any, name: str, value: str) -> None:
    """Set a pragma of this connection unless it has this value already."""
    if connection.info.get(name) != value:
        cursor.execute(f"PRAGMA {name} = {value}")
        connection.info[name] = value


def _postgresql(url: URL, timeout_s: float) -> Engine:
    timeout_ms = int(timeout_s * 1000)
    defaults = {
        "application_name": "argosy",
        "connect_timeout": max(2, int(timeout_s)),
        "tcp_user_timeout": timeout_ms,  # detects a vanished host, also in the middle of a statement
    }
    try:
        engine = create_engine(
            url,
            connect_args={name: value for name, value in defaults.items() if name not in url.query},
            pool_size=4,
            max_overflow=12,  # of the server's 100, by default
            pool_timeout=timeout_s,
            pool_pre_ping=True,  # after a restart of the server, old connections are replaced silently
            hide_parameters=True,
        )
    except ImportError as error:
        raise StoreError("PostgreSQL needs its driver; pip install 'argosy[postgresql]'") from error

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET statement_timeout = {timeout_ms}")
            cursor.execute(f"SET idle_in_transaction_session_timeout = {timeout_ms}")
        connection.commit()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if connection.get_execution_options().get("argosy_write") is Weight.NOTE:
            connection.exec_driver_sql("SET LOCAL synchronous_commit TO OFF")

    return engine


_UNDEFINED = ("42P01", "42703")  # undefined_table, undefined_column
_PASSING = ("40", "53", "55", "57", "08", "25006")  # conflict, resources, locked, stopped, connection, read-only
_UNSTORABLE = "22"  # data exception


def translate(error: Exception, store: str) -> StoreError:
    """Return the store's error for an error of SQLAlchemy or a driver. Its text contains no values of rows."""
    driver = getattr(error, "orig", None) or error
    text = _one_line(driver)
    sqlstate = getattr(driver, "sqlstate", None) or ""
    if sqlstate in _UNDEFINED or "no such table" in text or "no such column" in text:
        return SchemaMismatch(f"{store}: {text}; {MIGRATE}")
    if isinstance(error, exc.TimeoutError):
        return StoreUnavailable(f"{store}: all connections are in use; try again")
    if sqlstate.startswith(_PASSING) or (not sqlstate and _is_outage(driver)):
        return StoreUnavailable(f"{store}: {text}; {_remedy(text)}")
    return StoreError(f"{store}: {text}")


def _is_outage(driver: BaseException) -> bool:
    """Return whether an error without SQLSTATE is an outage: locked, disk full, a missing or broken connection."""
    return type(driver).__name__ in ("OperationalError", "InterfaceError")


def _remedy(text: str) -> str:
    if "locked" in text:
        return "another process holds the database; try again, or find it with `fuser`"
    if "full" in text or "No space" in text:
        return "free some disk space; no data is lost"
    if "password" in text or "authentication" in text:
        return "check the user and password in ARGOSY_STORE_URL"
    if "open database file" in text or "readonly" in text:
        return "check that the folder exists and can be written"
    return "check that the database server is up and ARGOSY_STORE_URL names it"


def _one_line(driver: BaseException) -> str:
    # psycopg's `diag` has the message without its DETAIL, which may quote a row
    primary = getattr(getattr(driver, "diag", None), "message_primary", None)
    return " ".join((primary or str(driver) or type(driver).__name__).split())
