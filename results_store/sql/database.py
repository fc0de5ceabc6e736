"""The connection to the database: engine, transactions, and the translation of driver errors."""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

from sqlalchemy import URL, Connection, Engine, exc, make_url, select, table
from sqlalchemy.sql import column
from sqlalchemy.sql.selectable import ScalarSelect

from results_store.errors import SchemaMismatch, StoreError, StoreUnavailable
from results_store.sql.engines.forks import ForkGate, at_fork
from results_store.sql.engines.sqlite import SqliteFile, open_sqlite
from results_store.sql.engines.weight import Weight, asking
from results_store.sql.schema import CHUNKS, REVISION, VERSION_TABLE, compatible, is_own

__all__ = ["MIGRATE", "Database", "Weight", "open_current", "parse_url", "translate"]

MIGRATE = "run `argosy migrate`"

#: The wait of a fork for the transactions of other threads on an SQLite file.
FORK_S = 5.0

_INHERITED: list[Engine] = []  # by a forked child: collecting an engine would close connections of the parent


class Database:
    """The connections of a process to a database, for any number of threads. A forked child opens its own."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self.url = parse_url(url)
        self.timeout_s = timeout_s
        #: Whether all who use the database read results in chunks; known after `open_current`.
        self.chunked = False
        self._engine: Engine | None = None
        self._engines: dict[tuple[Weight, bool], Engine] = {}  # the same engine with options per kind of transaction
        self._file: SqliteFile | None = None
        # SQLite has one writer at a time and makes the others poll; threads of one process wait for this lock instead.
        self._turn = threading.Lock()
        # SQLite remembers in memory which locks its process holds. A child that inherits an open file believes that it
        # holds its parent's, even for connections of its own. So at a fork the file is closed, and this gate.
        self._gate = ForkGate()
        self._torn = False
        at_fork("before", self._before_fork)
        at_fork("parent", self._go_on)
        at_fork("child", self._start_anew)

    def __str__(self) -> str:
        return self.url.render_as_string(hide_password=True)

    @property
    def sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    def is_pooled(self) -> bool:
        """Return whether a pooler, such as PgBouncer, is between this process and PostgreSQL."""
        with self.read() as connection:
            return bool(connection.info.get("pooled"))

    @property
    def path(self) -> Path:
        """The file of an SQLite database."""
        return Path(self.url.database or "")

    def open(self) -> None:
        """Create the engine. The first use opens the first connection."""
        if self._engine is not None:
            return
        if self.sqlite:
            self._engine, self._file = open_sqlite(self.url, self.timeout_s)
            return
        try:
            from results_store.sql.engines.postgresql import open_postgresql

            self._engine = open_postgresql(self.url, self.timeout_s)
        except ImportError as error:
            raise StoreError("PostgreSQL needs its driver; pip install 'argosy[postgresql]'") from error

    def close(self) -> None:
        engine, self._engine = self._engine, None
        self._engines.clear()
        if engine is not None:
            engine.dispose()
        if self._file is not None:
            self._file.close()

    def _before_fork(self) -> None:
        if self.sqlite and self._engine is not None:
            self._torn = not self._gate.close(FORK_S)
            self._engine.dispose()
            if self._file is not None:
                self._file.close()

    def _go_on(self) -> None:
        if self._gate.closed:
            self._torn = False
            self._gate.open()

    def _start_anew(self) -> None:
        self._gate, self._turn = ForkGate(), threading.Lock()
        if self._engine is not None:
            _INHERITED.append(self._engine)
            self._engine, self._engines = None, {}
            if not self._torn:
                self.open()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a connection for reading, each statement on its own. Raises StoreUnavailable."""
        asking.tried_again = False
        with self._translated(), self._shut_at_fork(), self._opened().connect() as connection:
            yield connection if self.sqlite else connection.execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def cursor(self) -> Iterator[Any]:
        """Open a bare cursor of SQLite's driver, to read a single row. Raises StoreUnavailable."""
        with self._translated(), self._gate, closing(self._opened().raw_connection()) as connection:
            yield connection.cursor()

    @contextmanager
    def write(self, weight: Weight, *, rebuilding: bool = False, tried_again: bool = False) -> Iterator[Connection]:
        """Open a transaction, committed if the block ends without an error. Raises StoreUnavailable.

        `rebuilding`, for migrations, lets SQLite drop a table without cascading to the tables that refer to it.
        `tried_again` says that the caller tries again if the connection is lost: one that was just used is not asked
        whether it lives.
        """
        asking.tried_again = tried_again
        with (
            self._translated(),
            self._my_turn(),
            self._shut_at_fork(),
            self._engine_for(weight, rebuilding).begin() as connection,
        ):
            yield connection

    def _shut_at_fork(self) -> AbstractContextManager[None]:
        return self._gate if self.sqlite else nullcontext()

    def _engine_for(self, weight: Weight, rebuilding: bool) -> Engine:
        engine = self._opened()
        if (weight, rebuilding) not in self._engines:
            options = engine.execution_options(argosy_write=weight, argosy_rebuilding=rebuilding)
            self._engines[weight, rebuilding] = options
        return self._engines[weight, rebuilding]

    def _opened(self) -> Engine:
        if self._engine is None:
            if self._torn:
                raise StoreError(
                    f"{self}: a thread used the store while this process was forked, so the child must not; fork "
                    "earlier, or start the child with multiprocessing's spawn"
                )
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
            if self._file is not None:
                self._file.note(error)
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
    found_and_oldest = select(*map(_version_in, (VERSION_TABLE, compatible.name)))
    with database.read() as connection:
        found, oldest = connection.execute(found_and_oldest).one()
    if found is None or found < REVISION:
        raise SchemaMismatch(f"{database}: the schema is {found}, this version needs {REVISION}; {MIGRATE}")
    if oldest is not None and not is_own(oldest):
        oldest = found
    database.chunked = oldest is not None and oldest >= CHUNKS
    if oldest is None or oldest > REVISION:
        remedy = "upgrade argosy here: the database is newer"
        raise SchemaMismatch(f"{database}: the schema is {found}, this version needs {REVISION}; {remedy}")


def _version_in(name: str) -> ScalarSelect[Any]:
    return select(column("version_num")).select_from(table(name)).scalar_subquery()


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
        if "@" in (parsed.host or ""):  # its beginning is a part of the password
            raise StoreError("the store's URL has two @; write an @ in the user or the password as %40")
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise StoreError(f"no store of the kind {backend!r}; write sqlite:///path or postgresql://user@host/name")
    # A question mark is a sign of the path unless parameters follow it.
    _, mark, query = url.partition("?")
    path = parsed.database if not mark or parse_qsl(query) else f"{parsed.database or ''}?{unquote(query)}"
    if path in (None, "", ":memory:"):
        raise StoreError("a store in memory is lost between connections; write sqlite:///path")
    return parsed.set(drivername="sqlite+pysqlite", database=path)


_UNDEFINED = ("42P01", "42703")  # undefined_table, undefined_column
_NO_RIGHT = "42501"
#: Conflict, resources, locked, stopped, system, connection, read-only, and a session that was idle for too long.
_PASSING = ("40", "53", "55", "57", "58", "08", "25006", "25P03")
#: Signs of a pooler that does not fit, in the server's or the pooler's words. A pooler gives all its errors the same
#: SQLSTATE (08P01), which otherwise counts as an outage.
_POOLER = {
    "prepared statement": "a pooler shares sessions here: add ?prepare_threshold=none to the store's URL",
    "statement pooling mode": "set the pooler's pool_mode to transaction",
    "unsupported startup parameter": "name it in the pooler's ignore_startup_parameters, or take it out of the URL",
}


def translate(error: Exception, store: str) -> StoreError:
    """Return the store's error for an error of SQLAlchemy or a driver. Its text contains no values of rows."""
    driver = getattr(error, "orig", None) or error
    text = _one_line(driver)
    sqlstate = getattr(driver, "sqlstate", None) or ""
    for sign, remedy in _POOLER.items():
        if sign in text:
            return StoreError(f"{store}: {text}; {remedy}")
    if sqlstate in _UNDEFINED or "no such table" in text or "no such column" in text:
        return SchemaMismatch(f"{store}: {text}; {MIGRATE}")
    if isinstance(error, exc.TimeoutError):
        return StoreUnavailable(f"{store}: all connections are in use; try again")
    if sqlstate.startswith(_PASSING) or (not sqlstate and _is_outage(driver)):
        return StoreUnavailable(f"{store}: {text}; {_remedy(text)}")
    if sqlstate == _NO_RIGHT:
        own = "or name a schema of its own in the store's URL: ?options=-csearch_path%3Dargosy"
        return StoreError(f"{store}: {text}; grant the user this right, {own}")
    return StoreError(f"{store}: {text}")


def _is_outage(driver: BaseException) -> bool:
    """Return whether an error without SQLSTATE is an outage: locked, disk full, a missing or broken connection."""
    # By name, because psycopg is imported for PostgreSQL only. Its timeouts are subclasses.
    return any(kind.__name__ in ("OperationalError", "InterfaceError") for kind in type(driver).__mro__)


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
