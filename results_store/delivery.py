"""An envelope on its way: published, claimed, renewed, finished, overdue. Each function runs in the caller's transaction.

Locks are always taken in the same order, so that transactions wait for each other but never in a circle: results
by key, then envelopes by id, then jobs by id. A job's counters come last, since every worker wants them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, bindparam, case, func, select, update

from results_store.columns import among
from results_store.records import Batch, Claim, Committed, PendingEnvelope, Result, ResultState
from results_store.result_rows import insert_new, insert_results
from results_store.schema import ACCEPTED, PUBLISHED, UNFINISHED, batches, envelopes, jobs, payloads


def exchange(
    connection: Connection,
    *,
    results: Sequence[Result],
    done: Collection[str],
    ran: Sequence[Batch],
    claims: Collection[str],
    worker: str,
    leased_until: float,
    now: float,
) -> tuple[dict[str, Claim], Committed]:
    """Insert results and batches, finish `done`, decide `claims`, and count what was new in its jobs."""
    inserted = insert_results(connection, results, now)
    if ran:
        connection.execute(insert_new(connection, batches), [asdict(batch) for batch in ran])
    _lock(connection, [*done, *claims])
    finished = _finish(connection, done, now) if done else ()
    claimed = _claim(connection, claims, worker, now, leased_until) if claims else {}
    _count(connection, inserted, now)
    return claimed, Committed(inserted=inserted.total(), done=finished)


def _lock(connection: Connection, ids: Collection[str]) -> None:
    """Lock envelopes by id; an UPDATE of several rows would lock them as it meets them. SQLite locks as a whole."""
    if connection.dialect.name != "sqlite" and ids:
        wanted = select(envelopes.c.id).where(among(connection, envelopes.c.id, ids))
        connection.execute(wanted.order_by(envelopes.c.id).with_for_update())


def _claim(
    connection: Connection, ids: Collection[str], worker: str, now: float, leased_until: float
) -> dict[str, Claim]:
    found = connection.execute(
        select(envelopes.c.id, envelopes.c.state, envelopes.c.worker, envelopes.c.leased_until, jobs.c.cancelled_at)
        .join(jobs, jobs.c.id == envelopes.c.job)
        .where(among(connection, envelopes.c.id, ids))
    ).mappings()
    claims = {row["id"]: _verdict(row, worker, now) for row in found}
    taken = [id_ for id_, verdict in claims.items() if verdict in (Claim.WORK, Claim.CANCELLED)]
    if taken:
        # A worker can be faster than its producer's note that the envelope was published.
        connection.execute(
            update(envelopes)
            .where(among(connection, envelopes.c.id, taken))
            .values(
                state="published",
                published_at=func.coalesce(envelopes.c.published_at, now),
                attempts=envelopes.c.attempts + 1,
                worker=worker,
                leased_until=leased_until,
            )
        )
    return {id_: claims.get(id_, Claim.UNKNOWN) for id_ in ids}


def _verdict(row: RowMapping, worker: str, now: float) -> Claim:
    if row["state"] == "done":
        return Claim.DONE
    if row["leased_until"] is not None and row["leased_until"] > now and row["worker"] != worker:
        return Claim.HELD
    return Claim.WORK if row["cancelled_at"] is None else Claim.CANCELLED


def _finish(connection: Connection, ids: Collection[str], now: float) -> tuple[tuple[str, str], ...]:
    finished = connection.execute(
        update(envelopes)
        .where(among(connection, envelopes.c.id, ids))
        .values(state="done", finished_at=func.coalesce(envelopes.c.finished_at, now), leased_until=None)
        .returning(envelopes.c.job, envelopes.c.id)
    )
    return tuple((row.job, row.id) for row in finished)


_done = jobs.c.succeeded + jobs.c.failed + jobs.c.cancelled + jobs.c.expired
_counted = (
    update(jobs)
    .where(jobs.c.id == bindparam("_job"))
    .values(
        **{state.value: jobs.c[state.value] + bindparam(f"_{state.value}") for state in ResultState},
        finished_at=case(
            (and_(jobs.c.finished_at.is_(None), _done + bindparam("_new") >= jobs.c.total), bindparam("_at")),
            else_=jobs.c.finished_at,
        ),
    )
)


def _count(connection: Connection, inserted: Counter[tuple[str, ResultState]], at: float) -> None:
    for job in sorted({job for job, _ in inserted}):
        new = {f"_{state.value}": inserted[job, state] for state in ResultState}
        connection.execute(_counted, {"_job": job, "_at": at, "_new": sum(new.values()), **new})


def renew(connection: Connection, ids: Collection[str], *, worker: str, leased_until: float) -> int:
    """Prolong the leases that this worker still has; return how many those are."""
    _lock(connection, ids)
    mine = (among(connection, envelopes.c.id, ids), PUBLISHED, envelopes.c.worker == worker)
    return connection.execute(update(envelopes).where(*mine).values(leased_until=leased_until)).rowcount


def release(connection: Connection, ids: Collection[str], *, worker: str) -> int:
    """Give back what this worker has not finished: the attempt is not counted, anybody may claim it at once."""
    _lock(connection, ids)
    mine = (among(connection, envelopes.c.id, ids), PUBLISHED, envelopes.c.worker == worker)
    less = case((envelopes.c.attempts > 0, envelopes.c.attempts - 1), else_=0)
    return connection.execute(
        update(envelopes).where(*mine).values(worker=None, leased_until=None, attempts=less)
    ).rowcount


def mark_published(connection: Connection, ids: Collection[str], at: float) -> None:
    """Note that the envelopes were handed to Redis. One that a worker has claimed already is left as it is."""
    _lock(connection, ids)
    waiting = (among(connection, envelopes.c.id, ids), ACCEPTED)
    connection.execute(update(envelopes).where(*waiting).values(state="published", published_at=at))


def take_overdue(
    connection: Connection,
    now: float,
    *,
    accepted_before: float,
    published_before: float | None,
    limit: int,
) -> list[PendingEnvelope]:
    """Put overdue envelopes back into the outbox as accepted now, and return them to be published.

    Whoever takes them publishes them and calls `mark_published`, like their first producer. If it dies before
    that, they are overdue again `now - accepted_before` later.
    """
    due: list[ColumnElement[bool]] = [
        and_(ACCEPTED, envelopes.c.accepted_at < accepted_before),
        and_(PUBLISHED, envelopes.c.leased_until < now),
    ]
    if published_before is not None:
        unclaimed = envelopes.c.leased_until.is_(None)
        due.append(and_(PUBLISHED, unclaimed, envelopes.c.published_at < published_before))
    taken: list[str] = []
    for condition in due:  # one by one: each has an index of its own
        if len(taken) < limit:
            taken += _take(connection, condition, now, limit - len(taken))
    return _pending(connection, taken) if taken else []


def _take(connection: Connection, condition: ColumnElement[bool], now: float, limit: int) -> list[str]:
    # A CTE, since PostgreSQL may run a locking subquery more than once and then exceed the limit.
    chosen = (
        select(envelopes.c.id)
        .where(condition)
        .order_by(envelopes.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("chosen")
    )
    taken = connection.execute(
        update(envelopes)
        .where(envelopes.c.id.in_(select(chosen.c.id)))
        .values(state="accepted", accepted_at=now, published_at=None, worker=None, leased_until=None)
        .returning(envelopes.c.id)
    )
    return list(taken.scalars())


def _pending(connection: Connection, ids: Collection[str]) -> list[PendingEnvelope]:
    columns = ("id", "job", "model", "priority", "created_at", "attempts")
    rows = connection.execute(
        select(*(envelopes.c[name] for name in columns), payloads.c.payload, payloads.c.content_type)
        .join(payloads, payloads.c.envelope == envelopes.c.id)
        .where(among(connection, envelopes.c.id, ids), UNFINISHED)
        .order_by(envelopes.c.priority, envelopes.c.id)
    ).mappings()
    return [PendingEnvelope(**row) for row in rows]
