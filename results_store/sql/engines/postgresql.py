"""PostgreSQL: connections on which silence is bounded, also through a pooler like PgBouncer.

A pooler in transaction mode gives each transaction another session of the server. So a statement that was prepared in
one transaction may be missing in the next, or be the statement of another process, and a session's settings would reach
the other programs that use the pooler. Behind a pooler no statement is prepared, and settings end with the transaction.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

import psycopg
from psycopg.pq import Conninfo
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import InvalidatePoolError

from results_store.errors import StoreError
from results_store.sql.engines.weight import Weight, asking

#: The kernel notices a host that has vanished within about 25 s, whether the connection is idle, waits for an answer,
#: or has sent data that nobody acknowledges.
KEEPALIVE = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}

#: The option of psycopg itself that a URL may have: the uses of a statement before it is prepared, or "none".
THRESHOLD = "prepare_threshold"

#: The server ends a statement after this part of the timeout, so that its answer arrives within the whole.
SERVER_SHARE = 0.95

#: A connection that was used within these seconds is not asked whether it lives, for transactions that are tried
#: again. Each question is one of some ten waits of a transaction. HikariCP's pool does so, too.
LIVELY_S = 0.5


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that closes itself if the server does not answer in time.

    The server ends a statement that takes too long, and the kernel a connection to a vanished host. Neither notices a
    server that is stopped, or a link that takes data and loses it.
    """

    #: Seconds for an answer, and for the first answer after the connection has come from the pool.
    answer_s: float | None = None
    first_s: float | None = None
    answered = False
    used_at: float | None = None

    def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        """Run an operation of psycopg. Raises OperationalError, and closes the connection, if no answer comes."""
        bound_s = self.answer_s if self.answered else self.first_s
        try:
            result = super().wait(gen, *args, **{"timeout": bound_s, **options})
        except psycopg.errors._WaitTimeout:  # noqa: SLF001 - it has no public name
            self.pgconn.finish()
            raise psycopg.OperationalError(f"no answer from the server for {bound_s:g} s") from None
        self.answered = True
        return result


def _timeouts(server_ms: int, local: str) -> str:
    """Return an expression that sets the server's timeouts: for the session, or locally for the transaction."""
    names = ("statement_timeout", "idle_in_transaction_session_timeout")
    return " || ".join(f"set_config('{name}', '{server_ms}', {local})" for name in names)


def _checked(url: URL) -> dict[str, Any]:
    """Return the parameters in the URL that are psycopg's own. Raises StoreError for unknown or wrong ones."""
    known = {option.keyword.decode() for option in Conninfo.get_defaults()}
    for name in url.query:
        if name not in {*known, THRESHOLD}:
            raise StoreError(
                f"the store's URL has the parameter {name!r}, which PostgreSQL does not know; take it out, or write "
                f"{THRESHOLD} or a parameter of libpq"
            )
    value = url.query.get(THRESHOLD)
    if value is None:
        return {}
    if value == "none":
        return {THRESHOLD: None}
    if not isinstance(value, str) or not (value.isascii() and value.isdecimal()):
        raise StoreError(
            f"the store's URL has {THRESHOLD}={value!r}; write a number (statements are prepared after so many uses), "
            "or none"
        )
    return {THRESHOLD: int(value)}


def open_postgresql(url: URL, timeout_s: float) -> Engine:
    """Return the engine. Its first use opens the first connection. Parameters in the URL win over the defaults here.

    A silent connection from the pool costs a third of the timeout. The rest is left to replace it. Raises StoreError
    for a parameter that is none of libpq's.
    """
    server_ms = int(timeout_s * SERVER_SHARE * 1000)
    defaults = {
        "application_name": "argosy",
        "connect_timeout": max(2, int(timeout_s * 2 / 3)),
        **KEEPALIVE,
    }
    given = _checked(url)
    engine = create_engine(
        url.difference_update_query([THRESHOLD]),
        connect_args={name: value for name, value in defaults.items() if name not in url.query} | given,
        pool_size=8,  # as many as a busy worker uses; more are opened and closed each time
        max_overflow=8,  # of the server's 100, by default
        pool_timeout=timeout_s,
        hide_parameters=True,
    )

    _replace_the_dead(engine, timeout_s)

    @event.listens_for(engine, "do_connect")
    def _open(_dialect: object, _record: object, arguments: list[Any], options: dict[str, Any]) -> BoundedConnection:
        connection = BoundedConnection.connect(*arguments, **options)
        connection.first_s, connection.answer_s = timeout_s / 3, timeout_s
        return connection

    @event.listens_for(engine, "connect")
    def _connect(connection: BoundedConnection, record: Any) -> None:
        # A pooler invents the process number that it announces to its client.
        own = f"CASE WHEN pg_backend_pid() = {connection.info.backend_pid} THEN {_timeouts(server_ms, 'false')} END"
        with connection.cursor() as cursor:
            (found,) = cursor.execute(f"SELECT {own}").fetchone() or (None,)
        connection.commit()
        record.info["pooled"] = found is None
        if found is None and THRESHOLD not in given:
            connection.prepare_threshold = None

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if connection.info["pooled"] and "argosy_write" in options:
            connection.exec_driver_sql(f"SELECT {_timeouts(server_ms, 'true')}")
        if options.get("argosy_write") is Weight.NOTE:
            connection.exec_driver_sql("SET LOCAL synchronous_commit TO OFF")
        if options.get("argosy_rebuilding"):  # a migration may take hours, and waits for others
            connection.connection.driver_connection.answer_s = None  # type: ignore[union-attr]

    return engine


def _replace_the_dead(engine: Engine, timeout_s: float) -> None:
    """Have the pool replace its old connections silently after a restart of the server."""

    @event.listens_for(engine, "checkout")
    def _checkout(connection: Any, _record: object, _borrowed: object) -> None:
        if connection.used_at is None:  # it is new
            return
        if asking.tried_again and monotonic() - connection.used_at < LIVELY_S:
            return
        try:
            engine.dialect.do_ping(connection)
        except psycopg.Error as error:
            raise InvalidatePoolError from error

    @event.listens_for(engine, "checkin")
    def _checkin(connection: BoundedConnection | None, _record: object) -> None:
        if connection is not None:  # it is None after a loss
            connection.answered, connection.answer_s, connection.used_at = False, timeout_s, monotonic()
