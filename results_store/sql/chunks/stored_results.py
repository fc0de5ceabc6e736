"""Read a job's results, some of which are rows and others in chunks: every reader of succeeded results comes here.

A statement reads both tables. If a result is in both, the row in `results` counts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from operator import attrgetter, itemgetter
from typing import Any, TypeAlias

from sqlalchemy import Connection, func, select
from sqlalchemy import text as statement

from results_store.records import Result, ResultState
from results_store.sql.chunks.chunk_rows import SPAN, ChunkResults, ChunkRow, numbers
from results_store.sql.chunks.chunk_storage import CHUNK_TYPES
from results_store.sql.result_rows import COLUMNS
from results_store.sql.schema import result_chunks, results

#: Runs a statement with parameters, and returns its rows with JSON as values.
Ask: TypeAlias = Callable[[str, dict[str, Any]], Sequence[Sequence[Any]]]

_Key: TypeAlias = tuple[int, str]

#: The most chunks that a statement for a page reads.
CHUNKS_AT_ONCE = 16

#: Items at most this far from each other are looked up together.
_GAP = 64

_LOWEST = -(2**62)

_TYPES = dict(COLUMNS)
_ONLY_CHUNKS = [name for name in ChunkRow._fields if name not in _TYPES]
_NAMES = [*_TYPES, *_ONLY_CHUNKS]
_of_result = itemgetter(*range(len(_TYPES)))
_of_chunk = itemgetter(*map(_NAMES.index, ChunkRow._fields))
_STATE = _NAMES.index("state")


def _columns(own: Collection[str]) -> str:
    types = {**CHUNK_TYPES, **_TYPES}
    return ", ".join(name if name in own else f"CAST(NULL AS {types[name]}) AS {name}" for name in _NAMES)


_ROWS, _CHUNKS = _columns(_TYPES), _columns(ChunkRow._fields)

# Tasks are ordered byte by byte, as Python orders them, and not as in the language of a database.
_BYTES = {"sqlite": "", "postgresql": ' COLLATE "C"'}
_PAGE = {
    dialect: f"""
SELECT * FROM (
  SELECT {_ROWS} FROM results WHERE job = :job AND seq >= :seq AND (seq > :seq OR task{by_bytes} > :task)
  ORDER BY seq, task{by_bytes} LIMIT :rows
) AS own
UNION ALL
SELECT * FROM (
  SELECT {_CHUNKS} FROM result_chunks
  WHERE job = :job AND first > :seq - {SPAN} AND last >= :seq AND first >= :first
  ORDER BY first, envelope, task LIMIT :chunks OFFSET :seen
) AS chunks
"""  # noqa: S608 - constants
    for dialect, by_bytes in _BYTES.items()
}

_MET = f"first > CAST({{0}} AS bigint) - {SPAN} AND first <= CAST({{1}} AS bigint) AND last >= CAST({{0}} AS bigint)"
# The ranges come first, whatever the planner estimates.
_OF_ITEMS = {
    "sqlite": f"""
SELECT {_ROWS} FROM results WHERE job = :job AND seq IN (SELECT value FROM json_each(:seqs))
UNION ALL
SELECT {_CHUNKS} FROM result_chunks WHERE (job, envelope, task) IN (
  SELECT job, envelope, task FROM json_each(:ranges) CROSS JOIN result_chunks
  WHERE job = :job AND {_MET.format("json_extract(value, '$[0]')", "json_extract(value, '$[1]')")}
)
""",  # noqa: S608 - constants
    "postgresql": f"""
SELECT {_ROWS} FROM results
WHERE job = :job AND seq = ANY(ARRAY(SELECT CAST(value AS bigint) FROM json_array_elements_text(CAST(:seqs AS json))))
UNION ALL
SELECT {_CHUNKS} FROM result_chunks WHERE (job, envelope, task) IN (
  SELECT met.job, met.envelope, met.task FROM json_array_elements(CAST(:ranges AS json)) AS range (value)
  CROSS JOIN LATERAL (
    SELECT job, envelope, task FROM result_chunks
    WHERE job = :job AND {_MET.format("value ->> 0", "value ->> 1")} OFFSET 0
  ) AS met
)
""",  # noqa: S608 - constants
}


_TYPED = {"output": results.c.output.type, "error": results.c.error.type}
_SQL = {"page": _PAGE, "items": _OF_ITEMS}
_PREPARED = {
    (name, dialect): statement(sql).columns(**_TYPED) for name, own in _SQL.items() for dialect, sql in own.items()
}


def asking(connection: Connection) -> Ask:
    """Return the way to ask in a connection."""
    dialect = connection.dialect.name
    return lambda name, given: connection.execute(_PREPARED[name, dialect], given).all()


def asking_lite(cursor: Any) -> Ask:
    """Return the way to ask with a bare cursor of SQLite's driver."""
    places = [_NAMES.index(name) for name in _TYPED]

    def ask(name: str, given: dict[str, Any]) -> Sequence[Sequence[Any]]:
        rows = [list(row) for row in cursor.execute(_SQL[name]["sqlite"], given)]
        for row in rows:
            for place in places:
                row[place] = None if row[place] is None else json.loads(row[place])
        return rows

    return ask


def page_of_results(ask: Ask, job: str, after: _Key | None, limit: int) -> list[Result]:
    begin = after or (_LOWEST, "")
    at_once = min(CHUNKS_AT_ONCE, 4 + limit // _GAP)
    given = {"job": job, "seq": begin[0], "task": begin[1], "rows": limit, "chunks": at_once}
    own, chunks = _divided(ask("page", given | {"first": _LOWEST, "seen": 0}))
    seen: Counter[int] = Counter()
    found: dict[_Key, tuple[ChunkResults, int]] = {}
    while True:
        for chunk in chunks:
            places = range(chunk.place_of(begin[0]), len(chunk.seqs))
            keys = ((chunk.seqs[place], chunk.row.task) for place in places)
            found |= {key: (chunk, place) for key, place in zip(keys, places, strict=True) if key > begin}
        wanted = sorted(own.keys() | found.keys())[:limit]
        # the chunks that were not read begin where the last of these begins, or later
        if len(chunks) < at_once or (len(wanted) == limit and wanted[-1][0] < chunks[-1].row.first):
            return [own.get(key) or found[key][0].result(found[key][1]) for key in wanted]
        seen.update(chunk.row.first for chunk in chunks)
        behind = {"first": chunks[-1].row.first, "seen": seen[chunks[-1].row.first]}
        _, chunks = _divided(ask("page", given | behind | {"rows": 0}))


def results_of(ask: Ask, job: str, seqs: Collection[int]) -> list[Result]:
    """Return the results of these items, by item and task."""
    given = {"job": job, "seqs": json.dumps([*seqs]), "ranges": json.dumps(_ranges(seqs))}
    own, chunks = _divided(ask("items", given))
    wanted = sorted(set(seqs))
    for chunk in chunks:
        for result in chunk.among(wanted):
            own.setdefault((result.seq, result.task), result)
    return [own[key] for key in sorted(own)]


def spread_of_results(connection: Connection, job: str, block: int) -> dict[int, int]:
    place = results.c.seq // block
    rows = select(place, func.count()).where(results.c.job == job).group_by(place)
    spread = Counter({int(number): count for number, count in connection.execute(rows)})
    c = result_chunks.c
    for first, size, places in connection.execute(select(c.first, c.size, c.places).where(c.job == job)):
        if places is None:
            spread.update(_blocks(range(first, first + size), block))
        else:
            spread.update(seq // block for seq in numbers(first, size, places))
    return dict(spread)


def _blocks(seqs: range, block: int) -> dict[int, int]:
    """Return the number of items in each block."""
    numbers_of = range(seqs.start // block, (seqs.stop - 1) // block + 1)
    return {number: min(seqs.stop, (number + 1) * block) - max(seqs.start, number * block) for number in numbers_of}


def _divided(rows: Sequence[Sequence[Any]]) -> tuple[dict[_Key, Result], list[ChunkResults]]:
    """Return the results among the rows by item and task, and the chunks by their first items."""
    own = [_result(row) for row in rows if row[_STATE] is not None]
    chunks = [ChunkRow(*_of_chunk(row)) for row in rows if row[_STATE] is None]
    chunks.sort(key=attrgetter("first"))
    return {(row.seq, row.task): row for row in own}, [ChunkResults(row) for row in chunks]


def _result(row: Sequence[Any]) -> Result:
    own = dict(zip(_TYPES, _of_result(row), strict=True))
    return Result(**{**own, "state": ResultState(own["state"])})


def _ranges(seqs: Collection[int]) -> list[list[int]]:
    """Return ranges that hold the items, and few others."""
    ranges: list[list[int]] = []
    for seq in sorted(seqs):
        if ranges and seq - ranges[-1][1] <= _GAP:
            ranges[-1][1] = seq
        else:
            ranges.append([seq, seq])
    return ranges
