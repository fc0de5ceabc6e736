"""SQLite: connections to an existing file, which are replaced when the file is."""

from __future__ import annotations

import os
import sqlite3
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, exc

from results_store.errors import StoreError
from results_store.sql.engines.turns import Turns
from results_store.sql.engines.weight import Weight

#: The driver's parameters that a URL may have.
_OPTIONS = frozenset(("cached_statements", "check_same_thread", "detect_types", "isolation_level", "timeout", "uri"))


class SqliteFile:
    """The file of an engine's connections.

    SQLite opens a missing file by creating it, keeps a deleted file open, and falls back to a read-only handle if the
    file cannot be written at that moment. So the URI forbids to create the file, a connection from the pool must still
    be to the file that has the path now, and a read-only handle is used once. All connections are replaced after a
    write that failed because its handle was read-only.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._replaced = 0
        self.turns = Turns(path) if path else None

    def close(self) -> None:
        """Close the file of turns. The next turn opens it again."""
        if self.turns:
            self.turns.close()

    def uri(self) -> str:
        assert self.path is not None
        return f"file://{quote(os.fsencode(self.path))}?mode=rw"

    def identity(self) -> tuple[int, ...] | None:
        """Return a value that changes when the connections must be replaced. None: there is no file."""
        if self.path is None:  # the user's own URI
            return (self._replaced,)
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino, self._replaced

    def note(self, error: Exception) -> None:
        """Replace all connections if a write failed because a handle is read-only."""
        if (getattr(getattr(error, "orig", error), "sqlite_errorcode", 0) & 0xFF) == sqlite3.SQLITE_READONLY:
            self._replaced += 1


def open_sqlite(url: URL, timeout_s: float) -> tuple[Engine, SqliteFile]:
    """Return the engine of a database file and the file. Its first use opens the first connection.

    Raises StoreError for a parameter in the URL that the driver does not take.
    """
    if "uri" not in url.query and (unknown := url.query.keys() - _OPTIONS):
        raise StoreError(f"the store's URL has the parameter {min(unknown)!r}, which SQLite does not know; take it out")
    file = SqliteFile(None if "uri" in url.query else Path(url.database or "").absolute())
    # The driver starts no transaction by itself (isolation_level None); `_begin` does, with the right kind.
    try:
        engine = create_engine(
            url,
            connect_args={"isolation_level": None, **({} if "timeout" in url.query else {"timeout": timeout_s})},
            pool_size=4,
            max_overflow=28,
            pool_timeout=timeout_s,
            hide_parameters=True,
        )
    except ValueError as error:
        raise StoreError(f"a parameter in the store's URL is wrong: {error}") from None

    @event.listens_for(engine, "do_connect")
    def _connect(dialect: Any, record: Any, arguments: list[Any], options: dict[str, Any]) -> Any:
        if file.path is not None:
            arguments[0], options["uri"] = file.uri(), True
        record.info["file"] = file.identity()
        connection = dialect.connect(*arguments, **options)
        record.info["once"] = file.path is not None and not os.access(file.path, os.W_OK)
        connection.execute("PRAGMA journal_size_limit = 67108864")  # lets a large WAL shrink again
        return connection

    @event.listens_for(engine, "checkout")
    def _checkout(_connection: object, record: Any, _proxy: object) -> None:
        if record.info["file"] != file.identity():
            raise exc.DisconnectionError("the file was replaced, or must be opened again")
        if record.info["once"]:
            record.info["file"] = None

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
        with file.turns.next() if file.turns else nullcontext():
            cursor.execute("BEGIN IMMEDIATE")
        cursor.close()

    return engine, file


def _pragma(connection: Connection, cursor: Any, name: str, value: str) -> None:
    """Set a pragma of this connection unless it has this value already."""
    if connection.info.get(name) != value:
        cursor.execute(f"PRAGMA {name} = {value}")
        connection.info[name] = value
