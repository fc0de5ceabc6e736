"""Insert chunks of results, and rows beside them, so that each result is stored once.

No key of the database spans both tables. The lock of the envelope does: it is taken before anything is inserted for the
envelope, so that only one transaction at a time looks for its results in one table and inserts them into the other.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from itertools import chain
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, select

from results_store.records import Result, ResultChunk, ResultState
from results_store.sql.chunks.chunk_rows import SPAN, VECTOR_BYTES, ChunkResults, ChunkRow, numbers, row_of
from results_store.sql.columns import CLOCK, among, text
from results_store.sql.result_rows import Counts
from results_store.sql.schema import result_chunks

#: The columns of a chunk, with their types.
CHUNK_TYPES = dict.fromkeys(ChunkRow._fields, "text") | {
    **dict.fromkeys(("first", "last", "size", "dimension"), "bigint"),
    "vectors": "bytea",
    **dict.fromkeys(("queued_at", "stored_at"), "float8"),
}
_NAMES = ", ".join(ChunkRow._fields)

# by the primary key of `results`: the range holds the items of the chunk, and seldom anything else
_FREE = (
    "NOT EXISTS (SELECT 1 FROM results WHERE results.job = given.job AND results.seq >= given.first "
    "AND results.seq <= given.last AND results.task = given.task{})"
)
# Some chunks together, in few lengths: a statement costs more than its work beside threads that compute.
_LENGTHS = (32, 4, 1)
_MARKS = f"({', '.join('?' * len(ChunkRow._fields))})"
_SQLITE = {
    length: f"WITH given ({_NAMES}) AS (VALUES {', '.join([_MARKS] * length)}) "  # noqa: S608 - constants
    f"INSERT INTO result_chunks ({_NAMES}) SELECT * FROM given WHERE {_FREE.format('')} "
    "ON CONFLICT DO NOTHING RETURNING job, envelope, task"
    for length in _LENGTHS
}
# OFFSET 0: a probe of the index for each chunk, whatever the planner estimates
_ARRAYS = ", ".join(f"%b::{kind}[]" for kind in CHUNK_TYPES.values())
_VALUES = _NAMES.replace("stored_at", f"coalesce(stored_at, (SELECT {CLOCK['postgresql']}))")
_POSTGRESQL = (
    f"INSERT INTO result_chunks ({_NAMES}) SELECT {_VALUES} FROM unnest({_ARRAYS}) AS given ({_NAMES}) "  # noqa: S608
    f"WHERE {_FREE.format(' OFFSET 0')} ON CONFLICT DO NOTHING RETURNING job, envelope, task"
)


class StoredChunks(NamedTuple):
    """The chunks of a transaction that were stored as chunks, and the results of the others."""

    whole: Sequence[ChunkRow] = ()
    apart: Sequence[Result] = ()

    @property
    def counts(self) -> Counts:
        """The number of new results by job, envelope and state."""
        new: Counts = Counter()
        for row in self.whole:
            new[row.job, row.envelope, ResultState.SUCCEEDED] += row.size
        return new


def insert_chunks(
    connection: Connection, new: Sequence[ResultChunk], listed: Collection[str], at: float | None
) -> StoredChunks:
    """Insert chunks of `listed` envelopes, whose locks the caller has, if all their results are new. Raises InvalidRow.

    They are stored `at` this time; on PostgreSQL, None is the store's time. The results of the other chunks are
    returned, to be inserted as rows: some of them are stored already, or their items lie too far from each other.
    """
    rows = sorted((row_of(chunk, at) for chunk in new), key=lambda row: row.key)
    left = {row.key: row for row in rows if row.envelope in listed and _fits(row)}
    insert = _into_sqlite if connection.dialect.name == "sqlite" else _into_postgresql
    stored = insert(connection, [*left.values()]) if left else set()
    whole = {id(row) for key, row in left.items() if key in stored}
    return StoredChunks(
        [row for row in rows if id(row) in whole],
        [result for row in rows if id(row) not in whole for result in ChunkResults(row)],
    )


def _fits(row: ChunkRow) -> bool:
    return row.last - row.first < SPAN and len(row.vectors or b"") <= VECTOR_BYTES


def _into_sqlite(connection: Connection, rows: Sequence[ChunkRow]) -> set[tuple[str, str, str]]:
    stored: set[tuple[str, str, str]] = set()
    begin = 0
    cursor = connection.connection.cursor()
    try:
        for length in _LENGTHS:
            while begin + length <= len(rows):
                values = list(chain.from_iterable(rows[begin : begin + length]))
                stored.update(cursor.execute(_SQLITE[length], values).fetchall())
                begin += length
    finally:
        cursor.close()
    return stored


def _into_postgresql(connection: Connection, rows: Sequence[ChunkRow]) -> set[tuple[str, str, str]]:
    columns = tuple(list(column) for column in zip(*rows, strict=True))
    return {(job, envelope, task) for job, envelope, task in connection.exec_driver_sql(_POSTGRESQL, columns)}


def not_in_chunks(connection: Connection, rows: Sequence[Result], chunked: Collection[str]) -> Sequence[Result]:
    """Return the results that are in no chunk. `chunked` are the envelopes that have chunks."""
    there = {row.envelope for row in rows}.intersection(chunked) if chunked else ()
    if not there:
        return rows
    owners = {row.job for row in rows if row.envelope in there}
    return _without_stored(connection, rows, owners, among(connection, result_chunks.c.envelope, there))


def not_in_chunks_of(connection: Connection, rows: Sequence[Result], owners: Collection[str]) -> Sequence[Result]:
    """Return the results that are in no chunk of these jobs, whichever envelope it is of.

    The caller has the locks of the jobs' envelopes at work.
    """
    seqs = [row.seq for row in rows if row.job in owners]
    if not seqs:
        return rows
    near = result_chunks.c.first.between(min(seqs) - SPAN, max(seqs))
    return _without_stored(connection, rows, owners, near)


def _without_stored(
    connection: Connection, rows: Sequence[Result], owners: Collection[str], which: ColumnElement[bool]
) -> Sequence[Result]:
    c = result_chunks.c
    wanted = select(c.job, c.task, c.first, c.size, c.places).where(among(connection, c.job, owners), which)
    stored: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for job, task, first, size, places in connection.execute(wanted):
        stored[job, task].update(numbers(first, size, places))
    return [row for row in rows if row.seq not in stored.get((row.job, text(row.task) or ""), ())]
