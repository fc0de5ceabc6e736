"""Insert rows that may exist already: new ones are inserted, existing ones stay, and the count is exact.

A result's first terminal state wins. The number of new rows comes from the INSERT itself, so a job's progress stays
exact even if workers deliver the same results twice at the same time.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import Connection, Insert, Table
from sqlalchemy.dialects import postgresql, sqlite

from results_store.records import Result, ResultState
from results_store.sql.columns import CLOCK, json_text, text
from results_store.sql.schema import REVISION

#: The columns of a result, with PostgreSQL's types.
COLUMNS = (
    ("job", "text"),
    ("seq", "bigint"),
    ("task", "text"),
    ("envelope", "text"),
    ("state", "text"),
    ("key", "text"),
    ("output", "jsonb"),
    ("vector", "bytea"),
    ("error", "jsonb"),
    ("model", "text"),
    ("model_revision", "text"),
    ("precision", "text"),
    ("tokens", "bigint"),
    ("batch", "text"),
    ("queued_at", "float8"),
    ("batched_at", "float8"),
    ("computed_at", "float8"),
    ("stored_at", "float8"),
)
_NAMES = ", ".join(name for name, _ in COLUMNS)

_MARKS = f"({', '.join('?' * len(COLUMNS))})"
# Python's driver lets go of the interpreter for each statement, and takes it back from threads that compute: up to 5 ms
# for each. So rows go together, in few lengths, since the driver remembers statements.
_LENGTHS = (256, 32, 4, 1)
_SQLITE = {
    length: f"INSERT INTO results ({_NAMES}) VALUES {', '.join([_MARKS] * length)} ON CONFLICT DO NOTHING"  # noqa: S608
    for length in _LENGTHS
}

# Many rows go by COPY into a temporary table and from there into `results`: twice as fast as arrays, which the driver
# writes element by element. Few rows go as arrays, one per column, without the second statement. In both cases JSON
# travels as text and is cast on arrival; the rest is binary, which spares vectors the hex encoding.
COPIED_FROM = 128
_INCOMING_TYPES = ["text" if kind == "jsonb" else kind for _, kind in COLUMNS]
# Behind a pooler, another version's process may have made a table of other columns in the same session.
_INCOMING_NAME = f"incoming_results_{REVISION}"
_INCOMING = "CREATE TEMPORARY TABLE IF NOT EXISTS {} ({}) ON COMMIT DELETE ROWS".format(
    _INCOMING_NAME, ", ".join(f"{name} {kind}" for (name, _), kind in zip(COLUMNS, _INCOMING_TYPES, strict=True))
)
_COPY = f"COPY {_INCOMING_NAME} ({_NAMES}) FROM STDIN (FORMAT BINARY)"
_ARRAYS = ", ".join("%t::text[]" if kind == "jsonb" else f"%b::{kind}[]" for _, kind in COLUMNS)
_VALUES = ", ".join(f"{name}::jsonb" if kind == "jsonb" else name for name, kind in COLUMNS[:-1])
_VALUES += f", coalesce(stored_at, (SELECT {CLOCK['postgresql']}))"
_GIVEN = f"unnest({_ARRAYS}) AS given ({_NAMES})"
_INSERTED = f"""
WITH new AS (
  INSERT INTO results ({_NAMES}) SELECT {_VALUES} FROM %s
  ON CONFLICT DO NOTHING RETURNING job, envelope, seq, task, state, stored_at
)
"""  # noqa: S608 - constants
_COUNTED = "SELECT job, envelope, state, count(*) FROM new GROUP BY job, envelope, state"
_LISTED = "SELECT job, envelope, seq, task, state, stored_at FROM new"


#: The number of new results by job, envelope and state.
Counts: TypeAlias = Counter[tuple[str, str, ResultState]]


class Inserted(NamedTuple):
    """A result that is new in the store."""

    job: str
    envelope: str
    seq: int
    task: str
    state: ResultState
    stored_at: float


@dataclass(frozen=True, slots=True)
class Accepted:
    """The growth of a job by results of envelopes without a row."""

    items: int
    total: int


def insert_new(connection: Connection, table: Table) -> Insert:
    """Return an INSERT into `table` that leaves existing rows unchanged."""
    return _insert_new(connection.dialect.name, table)


@cache
def _insert_new(dialect: str, table: Table) -> Insert:
    if dialect == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    return postgresql.insert(table).on_conflict_do_nothing()


def insert_results(connection: Connection, new: Sequence[Result], at: float | None) -> Counts:
    """Insert results that do not exist yet; return their number by job, envelope and state. Raises InvalidRow.

    They are stored `at` this time; on PostgreSQL, None is the store's time. Rows go in key order, so that two
    transactions with the same results wait for each other without a deadlock.
    """
    rows = _rows(new, at)
    if not rows:
        return Counter()
    if connection.dialect.name == "sqlite":
        return Counter((row[0], row[3], row[4]) for row in _into_sqlite(connection, rows))
    found = _into_postgresql(connection, rows, _COUNTED)
    return Counter({(job, envelope, ResultState(state)): count for job, envelope, state, count in found})


def insert_unlisted(
    connection: Connection, new: Sequence[Result], at: float | None
) -> tuple[Counts, dict[str, Accepted], float | None]:
    """Do `insert_results` for envelopes without a row; return also the growth of each job, and the rows' time."""
    inserted = insert_listed(connection, new, at)
    total = Counter(row.job for row in inserted)
    items = Counter(job for job, _, _ in {row[:3] for row in inserted})
    stored_at = inserted[0].stored_at if inserted else None
    return counted(inserted), {job: Accepted(items[job], total[job]) for job in total}, stored_at


def insert_listed(connection: Connection, new: Sequence[Result], at: float | None) -> list[Inserted]:
    """Do `insert_results`, and return the new results instead of their number."""
    rows = _rows(new, at)
    if not rows:
        return []
    if connection.dialect.name == "sqlite":
        return [Inserted(row[0], row[3], row[1], row[2], row[4], row[-1]) for row in _into_sqlite(connection, rows)]
    found = _into_postgresql(connection, rows, _LISTED)
    return [
        Inserted(job, envelope, seq, task, ResultState(state), stored_at)
        for job, envelope, seq, task, state, stored_at in found
    ]


def counted(inserted: Sequence[Inserted]) -> Counts:
    """Return the number of new results by job, envelope and state."""
    return Counter((row.job, row.envelope, row.state) for row in inserted)


def _rows(new: Sequence[Result], at: float | None) -> list[tuple[Any, ...]]:
    return sorted((_row(result, at) for result in new), key=lambda row: row[:3])


def _into_postgresql(connection: Connection, rows: list[tuple[Any, ...]], wanted: str) -> Sequence[Any]:
    """Insert rows and run the query `wanted` on the new ones."""
    if len(rows) < COPIED_FROM:
        columns = tuple(list(column) for column in zip(*rows, strict=True))
        return connection.exec_driver_sql((_INSERTED % _GIVEN) + wanted, columns).all()
    driver: Any = connection.connection
    with driver.cursor() as cursor:
        cursor.execute(_INCOMING)
        with cursor.copy(_COPY) as copy:
            copy.set_types(_INCOMING_TYPES)
            for row in rows:
                copy.write_row(row)
    return connection.exec_driver_sql((_INSERTED % _INCOMING_NAME) + wanted).all()


def _into_sqlite(connection: Connection, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Insert rows and return the new ones."""
    # Without SQLAlchemy, whose overhead exceeds the insert.
    inserted, begin = [], 0
    cursor = connection.connection.cursor()
    try:
        for length in _LENGTHS:
            while begin + length <= len(rows):
                inserted += _inserted(cursor, rows[begin : begin + length])
                begin += length
    finally:
        cursor.close()
    return inserted


def _inserted(cursor: Any, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Insert rows together and return the new ones. Rows that are not all new are inserted one by one."""
    if len(rows) == 1:
        cursor.execute(_SQLITE[1], rows[0])
        return rows if cursor.rowcount else []
    cursor.execute("SAVEPOINT rows")
    cursor.execute(_SQLITE[len(rows)], list(itertools.chain.from_iterable(rows)))
    all_new = cursor.rowcount == len(rows)
    cursor.execute("RELEASE rows" if all_new else "ROLLBACK TO rows")
    return rows if all_new else [row for row in rows if _inserted(cursor, [row])]


def _row(result: Result, at: float | None) -> tuple[Any, ...]:
    where = f"results[{result.seq}, {result.task}]"
    return (
        result.job,
        result.seq,
        text(result.task),
        result.envelope,
        ResultState(result.state),
        text(result.key),
        json_text(result.output, f"{where}.output"),
        result.vector,
        json_text(result.error, f"{where}.error"),
        result.model,
        result.model_revision,
        result.precision,
        result.tokens,
        result.batch,
        result.queued_at,
        result.batched_at,
        result.computed_at,
        at if result.stored_at is None else result.stored_at,
    )
