"""Envelopes that wait: for their time, or for the end of a pause.

They are published without a message in Redis: a claim says that they wait, and a reconciler publishes them when their
time has come. Nothing else has a timer. Each function runs in the caller's transaction, which has locked the envelopes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    Text,
    and_,
    bindparam,
    case,
    func,
    literal,
    literal_column,
    or_,
    select,
    update,
)

from results_store.records import ALL_ITEMS, PostponedResult, Transaction
from results_store.sql.columns import among, cleaned, clock
from results_store.sql.schema import PUBLISHED, Json, envelopes, jobs, pauses

_TASK = "task:"

# made at the import: of threads that make it together at its first use, one could see half of it (msgspec 0.22)
_WAITS = msgspec.json.Decoder(tuple[PostponedResult, ...])

#: The pause of a claimed envelope's model or tenant, as a column beside envelopes and jobs; null without a pause.
PAUSED_BY = (
    select(func.min(pauses.c.subject))
    .where(pauses.c.subject.in_([literal("model:") + envelopes.c.model, literal("tenant:") + jobs.c.tenant]))
    .scalar_subquery()
)


def paused_tasks(dialect: str) -> ColumnElement[str | None]:
    """Return the pauses of tasks as a column, a line each; null without any."""
    joined = func.group_concat if dialect == "sqlite" else func.string_agg
    lines = joined(pauses.c.subject, literal_column("'\n'"))
    return select(lines).where(pauses.c.subject.startswith(literal_column(f"'{_TASK}'"))).scalar_subquery()


_UNLEASED = envelopes.c.leased_until.is_(None)
_NOT_DUE = or_(envelopes.c.due_at.is_(None), envelopes.c.due_at > clock())

# Each condition is false, never null, for an envelope that does not wait: it is used with NOT.

#: Whether an envelope waits for the end of a pause. Pauses that have ended hold nothing, though no worker may be there.
IS_PAUSED = and_(
    PUBLISHED,
    _UNLEASED,
    _NOT_DUE,
    envelopes.c.paused_by.is_not(None),
    envelopes.c.paused_by.in_(select(pauses.c.subject)),
)

#: Whether an envelope waits for its time alone.
IS_POSTPONED = and_(
    PUBLISHED, _UNLEASED, envelopes.c.paused_by.is_(None), envelopes.c.due_at.is_not(None), envelopes.c.due_at > clock()
)


def less(column: ColumnElement[int]) -> ColumnElement[int]:
    """Return a number less one, but never below 0."""
    return case((column > 0, column - 1), else_=0)


#: The worker lives: its last start with the suspect does not count.
UNSUSPECTED = {"suspect": func.nullif(envelopes.c.suspect, ALL_ITEMS), "tries": less(envelopes.c.tries)}


def task_names(lines: str | None) -> tuple[str, ...]:
    """Return the paused tasks of a value of `paused_tasks`."""
    return tuple(line.removeprefix(_TASK) for line in lines.split("\n")) if lines else ()


def postponed(found: str | None) -> Sequence[PostponedResult]:
    """Return the postponed results in a value of `waits`."""
    return _WAITS.decode(found) if found else ()


def waits(results: Sequence[PostponedResult]) -> str:
    """Return a value of `waits`."""
    return msgspec.json.encode(results).decode()


# An attempt that postpones results was no failure: it does not count. A worker that has lost its lease changes nothing.
_POSTPONED = (
    update(envelopes)
    .where(
        envelopes.c.id == bindparam("_id"),
        PUBLISHED,
        envelopes.c.worker == bindparam("_worker"),
        envelopes.c.leased_until > 0,
    )
    .values(
        attempts=less(envelopes.c.attempts),
        worker=None,
        leased_until=None,
        lease_s=None,
        waits=bindparam("_waits", type_=Text),
        due_at=bindparam("_due_at", type_=Double),
        paused_by=bindparam("_paused_by", type_=Text),
        error=func.coalesce(bindparam("_error", type_=Json), envelopes.c.error),
        **UNSUSPECTED,
    )
)


def postpone(connection: Connection, transaction: Transaction, now: float | None) -> None:
    """Let the transaction's postponed envelopes wait."""
    rows: list[dict[str, Any]] = [
        {
            "_id": id_,
            "_worker": transaction.worker,
            "_waits": waits(left.results),
            "_due_at": left.due_at,
            "_paused_by": left.paused_by,
            "_error": cleaned(left.error),
        }
        for id_, left in sorted(transaction.postponed.items())
    ]
    connection.execute(_POSTPONED, rows)


def pause(
    connection: Connection,
    id_: str,
    subject: str,
    deadline_at: float | None,
    now: float,
    *,
    deaths: ColumnElement[int],
) -> None:
    """Let an envelope wait for the end of a pause. Its deadline goes on: then it is published, and expires."""
    connection.execute(
        update(envelopes)
        .where(envelopes.c.id == id_)
        .values(
            state="published",
            published_at=func.coalesce(envelopes.c.published_at, now),
            leased_until=None,
            lease_s=None,
            deaths=deaths,
            paused_by=subject,
            due_at=deadline_at,
        )
    )


def wake(connection: Connection, job: str) -> None:
    """Let the envelopes of a job wait no longer. Call it before the job is locked: see `results_store.sql.delivery`."""
    waiting = or_(envelopes.c.due_at.is_not(None), envelopes.c.paused_by.is_not(None))
    wanted = select(envelopes.c.id).where(envelopes.c.job == job, PUBLISHED, waiting).order_by(envelopes.c.id)
    if ids := connection.execute(wanted.with_for_update(key_share=True)).scalars().all():
        connection.execute(update(envelopes).where(among(connection, envelopes.c.id, ids)).values(due_at=0.0))


def ready(connection: Connection, at: float) -> list[ColumnElement[bool]]:
    """Return the conditions of envelopes that have waited long enough: for their time, or for a pause that has ended.

    The pauses divide the index of `paused_by` into ranges, so what is
    paused is not looked at, however much it is.
    """
    unleased = _unleased(at)
    conditions = [and_(PUBLISHED, envelopes.c.due_at <= at, unleased)]
    subjects = connection.execute(select(pauses.c.subject).order_by(pauses.c.subject)).scalars().all()
    by = envelopes.c.paused_by
    for after, before in zip([None, *subjects], [*subjects, None], strict=True):
        between = [by.is_not(None) if after is None else by > after, *([] if before is None else [by < before])]
        conditions.append(and_(PUBLISHED, *between, unleased))
    return conditions


def waiting(at: float) -> list[ColumnElement[bool]]:
    """Return the conditions of envelopes that wait: for their time, or for the end of a pause."""
    return [and_(PUBLISHED, envelopes.c[name].is_not(None), _unleased(at)) for name in ("due_at", "paused_by")]


def _unleased(at: float) -> ColumnElement[bool]:
    # by no index: that of the leases holds all that is published
    return or_(envelopes.c.leased_until.is_(None), envelopes.c.leased_until < at)
