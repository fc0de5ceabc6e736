"""The tables of the Celery result backend. Each function runs in the caller's transaction; none knows Celery.

Times are by the store's clock, except `done_at`, Celery's own time of a task's end, which only cleaning up compares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import BigInteger, Connection, Table, delete, func, literal, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from results_store.sql.columns import among, clock, text
from results_store.sql.result_rows import insert_new
from results_store.sql.schema import celery_chord_parts, celery_chords, celery_groups, celery_tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """A task's state. `result`, `children` and `extended` are JSON."""

    id: str
    state: str
    result: str | None
    traceback: str | None = None
    children: str | None = None
    done_at: float | None = None
    group_id: str | None = None
    parent_id: str | None = None
    extended: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChordPart:
    """The result of a task in a chord's header. `size` is the chord's size, if the message has it."""

    chord: str
    task: str
    position: int | None
    state: str
    result: str
    size: int | None = None


def put_tasks(connection: Connection, rows: Sequence[TaskRow]) -> None:
    """Write states; if a task has several, the last is kept. A stored success stays."""
    if not rows:
        return
    given = sorted({row.id: row for row in rows}.values(), key=lambda row: row.id)
    insert = _insert(connection, celery_tasks)
    columns = {name: insert.excluded[name] for name in TaskRow.__slots__ if name != "id"}
    statement = insert.on_conflict_do_update(
        index_elements=["id"], set_=columns, where=celery_tasks.c.state != "SUCCESS"
    )
    connection.execute(statement, [{**asdict(row), "traceback": text(row.traceback)} for row in given])


def tasks(connection: Connection, ids: Collection[str]) -> list[TaskRow]:
    wanted = select(celery_tasks).where(among(connection, celery_tasks.c.id, ids))
    return [TaskRow(**row) for row in connection.execute(wanted).mappings()]


def forget_task(connection: Connection, id_: str) -> None:
    connection.execute(delete(celery_tasks).where(celery_tasks.c.id == id_))


# --- groups ---


def put_group(connection: Connection, id_: str, members: str) -> None:
    insert = _insert(connection, celery_groups).values(id=id_, members=members, saved_at=clock())
    changes = {"members": members, "saved_at": clock()}
    connection.execute(insert.on_conflict_do_update(index_elements=["id"], set_=changes))


def group(connection: Connection, id_: str) -> tuple[str, float] | None:
    row = connection.execute(select(celery_groups).where(celery_groups.c.id == id_)).one_or_none()
    return None if row is None else (row.members, row.saved_at)


def forget_group(connection: Connection, id_: str) -> None:
    connection.execute(delete(celery_groups).where(celery_groups.c.id == id_))


# --- chords ---


def set_chord_size(connection: Connection, id_: str, size: int) -> None:
    """Set the number of a chord's parts. A finished chord starts over, because its id may be used again."""
    _open_chords(connection, [id_])
    mine = celery_chords.c.id == id_
    connection.execute(
        update(celery_chords)
        .where(mine, celery_chords.c.done_at.is_not(None))
        .values(returned=0, added=0, claimed_until=None, done_at=None)
    )
    connection.execute(update(celery_chords).where(mine).values(size=size, updated_at=clock()))


def add_to_chord(connection: Connection, id_: str) -> None:
    _open_chords(connection, [id_])
    added = update(celery_chords).where(celery_chords.c.id == id_)
    connection.execute(added.values(added=celery_chords.c.added + 1, updated_at=clock()))


def return_parts(
    connection: Connection, parts: Sequence[ChordPart], claim_s: float, own: Mapping[str, float]
) -> dict[tuple[str, str], float]:
    """Count the new parts; return the (chord, task) pairs that find their chord complete and claim it, with the claims.

    `own` are claims of this process, by chord, that it may have written without knowing.
    """
    if not parts:
        return {}
    chords = sorted({part.chord for part in parts})
    open_ = _open_chords(connection, chords)
    rows = [asdict(part) for part in parts if part.chord in open_]
    for row in rows:
        del row["size"]
    new: Counter[str] = Counter()
    if rows:
        inserted = insert_new(connection, celery_chord_parts).returning(celery_chord_parts.c.chord)
        new.update(connection.execute(inserted, rows).scalars())
    for chord, count in sorted(new.items()):
        counted = update(celery_chords).where(celery_chords.c.id == chord)
        connection.execute(counted.values(returned=celery_chords.c.returned + count, updated_at=clock()))
    last = {part.chord: part for part in parts}
    claims = {chord: _claim(connection, last[chord], claim_s, own.get(chord)) for chord in open_}
    return {(chord, last[chord].task): until for chord, until in claims.items() if until is not None}


def _claim(connection: Connection, part: ChordPart, claim_s: float, own: float | None) -> float | None:
    """Claim a part's chord; return the end of the claim, or None if it is incomplete or another's."""
    size = func.coalesce(celery_chords.c.size, literal(part.size, BigInteger))
    until = celery_chords.c.claimed_until
    # the third if a clock was wrong
    free = or_(until.is_(None), until < clock(), until > clock() + claim_s, until == own)
    complete = celery_chords.c.returned >= size + celery_chords.c.added
    mine = (celery_chords.c.id == part.chord, celery_chords.c.done_at.is_(None), free, complete)
    claimed = update(celery_chords).where(*mine).values(claimed_until=clock() + claim_s)
    return connection.execute(claimed.returning(until)).scalar_one_or_none()


def chord_parts(connection: Connection, id_: str) -> list[tuple[str, str, str]]:
    """Return (task, state, result) of a chord's header, in its order."""
    part = celery_chord_parts.c
    wanted = select(part.task, part.state, part.result).where(part.chord == id_)
    ordered = wanted.order_by(part.position.is_(None), part.position, part.task)
    return [(task, state, result) for task, state, result in connection.execute(ordered)]


def finish_chord(connection: Connection, id_: str) -> None:
    """Close a chord whose body was sent or failed: a late copy of a part then changes nothing."""
    done = update(celery_chords).where(celery_chords.c.id == id_)
    connection.execute(done.values(done_at=clock(), claimed_until=None, updated_at=clock()))
    connection.execute(delete(celery_chord_parts).where(celery_chord_parts.c.chord == id_))


def _open_chords(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Insert missing chords, lock all in order, and return the ids of the unfinished ones."""
    new = insert_new(connection, celery_chords).values(updated_at=clock())
    connection.execute(new, [{"id": id_} for id_ in ids])
    wanted = select(celery_chords.c.id, celery_chords.c.done_at).where(among(connection, celery_chords.c.id, ids))
    locked = connection.execute(wanted.order_by(celery_chords.c.id).with_for_update())
    return {id_ for id_, done_at in locked if done_at is None}


def _insert(connection: Connection, into: Table) -> sqlite.Insert | postgresql.Insert:
    return sqlite.insert(into) if connection.dialect.name == "sqlite" else postgresql.insert(into)
