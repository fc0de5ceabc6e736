"""The delivery of envelopes: publish, claim, renew, finish, take overdue.

Each function runs in the caller's transaction.

Locks are always taken in the same order, so that transactions never deadlock: envelopes by id, then payloads, cached
results, chunks and results by key, then jobs by id. A job's counters come last, because every worker needs them.
Envelopes come first, so that a replay deletes failed results either before or after a worker's commit of the same
envelope. In the middle of it, the commit would skip a result that is then deleted, and mark its envelope as done. The
same lock lets no result be stored both as a row and in a chunk.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    Select,
    Update,
    and_,
    bindparam,
    case,
    false,
    func,
    literal,
    or_,
    select,
    text,
    update,
)

from results_store.errors import InvalidRow
from results_store.records import (
    ALONE_AFTER_DEATHS,
    Claim,
    Claimed,
    Committed,
    Line,
    NewEnvelope,
    PendingEnvelope,
    Result,
    ResultState,
    Transaction,
)
from results_store.sql import dead_letters, driver_statements, flight, pipelines, retention
from results_store.sql.caching import cached_results
from results_store.sql.chunks.chunk_rows import ChunkRow, numbers
from results_store.sql.chunks.chunk_storage import StoredChunks, insert_chunks, not_in_chunks, not_in_chunks_of
from results_store.sql.columns import CLOCK, among, as_list, cleaned, clock, given_or_clock, listed
from results_store.sql.result_rows import (
    Accepted,
    Counts,
    Inserted,
    counted,
    insert_listed,
    insert_results,
    insert_unlisted,
)
from results_store.sql.schema import ACCEPTED, PUBLISHED, RUNNING, UNFINISHED, envelopes, jobs, payloads, tenants
from results_store.sql.waiting import postponing
from results_store.sql.waiting.postponing import UNSUSPECTED, less

logger = logging.getLogger(__name__)

#: A lease without its length, of a worker older than this column, may end at most this long from now.
LONGEST_LEASE_S = 24 * 3600.0

#: Error kind of an envelope whose attempt ended with fewer results in the store than it owes.
NOT_COVERED = "NotCovered"


def transact(connection: Connection, transaction: Transaction, follow: pipelines.Follow | None = None) -> Committed:
    """Insert results and batches, finish `done` and `dead`, decide `claims`, and count the new results in their jobs.

    The new results also count in their envelopes: an envelope in `done` is finished only if all that it owes is stored.
    `follow` may derive more envelopes from new results of envelopes in `stepped`.
    """
    results, done, dead = transaction.results, transaction.done, transaction.dead
    unlisted, stepped = transaction.unlisted, transaction.stepped
    unbooked: Sequence[Result] = [one for one in results if one.envelope in unlisted] if unlisted else ()
    booked = [result for result in results if result.envelope not in unlisted] if unlisted else results
    steps = [result for result in booked if result.envelope in stepped] if stepped else ()
    booked = [result for result in booked if result.envelope not in stepped] if stepped else booked
    rows = [id_ for id_ in done if id_ not in unlisted] if unlisted else done
    owners = {result.envelope for result in (*booked, *steps, *transaction.chunks)}
    if odd := {chunk.envelope for chunk in transaction.chunks}.intersection((*unlisted, *stepped)):
        raise InvalidRow(f"chunks: {min(odd)} has no row or belongs to a pipeline; store its results as rows")
    # Substitutes name no envelope with a row: the results that they stand for may be in chunks of any envelope.
    late = {result.job for result in unbooked if result.envelope not in done}
    late.update(result.job for result in booked if result.envelope == result.job)
    at_work = _at_work(connection, late) if late else ()
    there = _lock(
        connection, {*rows, *dead, *transaction.claims, *owners, *at_work, *transaction.postponed}, transaction
    )
    if transaction.cached:  # their inputs are locked after the envelopes
        cached_results.keep(connection, transaction.cached)
    chunks = insert_chunks(connection, transaction.chunks, there.chunked, there.now) if transaction.chunks else _NONE
    booked, now = [*booked, *chunks.apart] if chunks.apart else booked, there.now
    chunked = {id_ for id_, has in there.chunked.items() if has} | {row.envelope for row in chunks.whole}
    own = not_in_chunks(connection, booked, chunked)
    if late:
        own, unbooked = (not_in_chunks_of(connection, some, late) for some in (own, unbooked))
    inserted = insert_results(connection, dead_letters.explained(connection, own, dead) if dead else own, now)
    more, accepted, stored_at = insert_unlisted(connection, unbooked, now)
    fresh = insert_listed(connection, dead_letters.explained(connection, steps, dead) if dead else steps, now)
    flight.record(connection, transaction.batches)
    listed_new = inserted + chunks.counts if chunks.whole else inserted
    listed_new = listed_new + counted(fresh) if fresh else listed_new
    ends = dict.fromkeys(dead, "dead") | dict.fromkeys(rows, "done")
    given = _Given((*booked, *steps), chunks.whole, listed_new)
    finished = _finish(connection, ends, given, now) if ends or listed_new else ()
    if transaction.postponed:
        postponing.postpone(connection, transaction, now)
    if transaction.drop_inputs and finished:  # except of pipelines, whose later steps may need them
        over = [id_ for _, id_ in finished if ends[id_] == "done" and id_ not in stepped]
        retention.drop_inputs(connection, over)
    claims = _claim(connection, transaction, now) if transaction.claims else {}
    new = listed_new + more if more else listed_new
    followed = _advance(connection, fresh, {job for job, _, _ in new}, follow, now)
    for job, results_owed in pipelines.owed(followed).items():
        accepted[job] = Accepted(0, results_owed)
    _count(connection, new, accepted, now)
    direct = sorted({(result.job, result.envelope) for result in unbooked if result.envelope in done})
    return Committed(
        claims=claims, inserted=new.total(), done=(*finished, *direct), followed=tuple(followed), stored_at=stored_at
    )


_NONE = StoredChunks()


def _at_work(connection: Connection, owners: Collection[str]) -> Sequence[str]:
    """Return the envelopes of these jobs that may still store results."""
    wanted = select(envelopes.c.id).where(UNFINISHED, among(connection, envelopes.c.job, owners))
    return connection.execute(wanted).scalars().all()


class _Locked(NamedTuple):
    """The locked envelopes: whether they have chunks, by id; those without a row are left out.

    `now` is the transaction's time, or None if each statement asks the store's clock by itself.
    """

    chunked: Mapping[str, bool]
    now: float | None


# On SQLite, where a transaction locks the whole database, with the time: a statement costs more than its work.
_LITE_LOOK = text(f"""
SELECT store.now, envelopes.id, envelopes.chunked FROM (SELECT {CLOCK["sqlite"]} AS now) AS store
LEFT JOIN envelopes ON envelopes.id IN (SELECT value FROM json_each(:_ids))
""")  # noqa: S608 - constants


def _lock(connection: Connection, ids: Collection[str], transaction: Transaction) -> _Locked:
    """Lock envelopes by id."""
    now = transaction.at
    if connection.dialect.name != "sqlite":
        return _Locked(dict(lock(connection, ids)), now)
    if not (transaction.results or transaction.chunks):
        return _Locked({}, now)
    if not ids:
        return _Locked({}, driver_statements.store_time(connection) if now is None else now)
    found = driver_statements.run(connection, _LITE_LOOK, {"_ids": as_list(connection, ids)})
    chunked = {id_: bool(chunked) for _, id_, chunked in found if id_ is not None}
    return _Locked(chunked, found[0][0] if now is None else now)


def _advance(
    connection: Connection,
    fresh: Sequence[Inserted],
    counted_jobs: Collection[str],
    follow: pipelines.Follow | None,
    now: float | None,
) -> list[NewEnvelope]:
    if not fresh or follow is None:
        return []
    return pipelines.advance(connection, fresh, counted_jobs, follow, now)


def lock(connection: Connection, ids: Collection[str]) -> Sequence[tuple[str, bool]]:
    """Lock envelopes by id: an UPDATE of several rows would lock them in any order. SQLite locks the whole database.

    Returns the locked envelopes, and whether they have chunks.
    """
    if connection.dialect.name == "sqlite" or not ids:
        return ()
    wanted = select(envelopes.c.id, envelopes.c.chunked.is_(True)).where(among(connection, envelopes.c.id, ids))
    found = connection.execute(wanted.order_by(envelopes.c.id).with_for_update(key_share=True))
    return [(id_, chunked) for id_, chunked in found]


class _Row(NamedTuple):
    id: str
    state: str
    worker: str | None
    leased_until: float | None
    lease_s: float | None
    attempts: int
    deadline_at: float | None
    deaths: int
    suspect: int | None
    due_at: float | None
    waits: str | None
    priority: int
    cancelled_at: float | None
    now: float
    payload: bytes | None
    content_type: str | None
    paused_by: str | None
    paused_tasks: str | None


#: The columns of `_Row` that other tables have.
_OTHERS = 6

# An attempt that ended with a recorded error has a lease until 0. A lease that is there and was not ended has run out
# without a word from its worker, when the envelope is taken from it.
_deaths = envelopes.c.deaths + case((envelopes.c.leased_until > 0, 1), else_=0)


@cache
def _claimable(dialect: str) -> Select[Any]:
    return (
        select(
            *(envelopes.c[name] for name in _Row._fields[:-_OTHERS]),
            jobs.c.cancelled_at,
            given_or_clock(),
            payloads.c.payload,
            payloads.c.content_type,
            postponing.PAUSED_BY,
            postponing.paused_tasks(dialect),
        )
        .join(jobs, jobs.c.id == envelopes.c.job)
        .outerjoin(payloads, payloads.c.envelope == envelopes.c.id)
        .where(listed(dialect, envelopes.c.id, "_ids"))
    )


@cache
def _taking(dialect: str) -> Update:
    return (
        update(envelopes)
        .where(listed(dialect, envelopes.c.id, "_ids"))
        .values(
            state="published",
            published_at=func.coalesce(envelopes.c.published_at, bindparam("_now")),
            attempts=envelopes.c.attempts + 1,
            deaths=_deaths,
            worker=bindparam("_worker"),
            leased_until=bindparam("_leased_until"),
            lease_s=bindparam("_lease_s"),
            due_at=None,
            paused_by=None,
        )
    )


def _claim(connection: Connection, transaction: Transaction, at: float | None) -> dict[str, Claimed]:
    dialect, worker, lease_s = connection.dialect.name, transaction.worker, transaction.lease_s
    wanted = {"_ids": as_list(connection, transaction.claims), "_now": at}
    rows = [_Row(*row) for row in driver_statements.run(connection, _claimable(dialect), wanted)]
    asked, most = transaction.priorities, transaction.max_attempts
    claims = {row.id: _answer(row, worker, most, asked.get(row.id, row.priority)) for row in rows}
    # A dead envelope gets no lease: if two workers commit it as dead, the second has no effect.
    taken = [id_ for id_, claimed in claims.items() if claimed.verdict in (Claim.WORK, Claim.CANCELLED)]
    if taken:
        # A worker may claim an envelope before its producer has marked it as published.
        now = rows[0].now
        lease = {"_now": now, "_worker": worker, "_leased_until": now + lease_s, "_lease_s": lease_s}
        driver_statements.run(connection, _taking(dialect), {"_ids": as_list(connection, taken), **lease})
    for row in rows:
        if row.paused_by and claims[row.id].verdict is Claim.WAITING:
            postponing.pause(connection, row.id, row.paused_by, row.deadline_at, row.now, deaths=_deaths)
    return {id_: claims.get(id_) or Claimed(Claim.UNKNOWN) for id_ in transaction.claims}


def _answer(row: _Row, worker: str, max_attempts: int, asked: int) -> Claimed:
    deaths = row.deaths + bool(row.leased_until)
    verdict = _verdict(row, worker, may_try=row.attempts - deaths < max_attempts)
    if verdict is Claim.WORK and asked < row.priority:  # it was made less urgent: its turn comes in another list
        verdict = Claim.WAITING
    alone = verdict is Claim.WORK and deaths >= ALONE_AFTER_DEATHS
    one_by_one = alone and row.suspect is not None
    payload = row.payload if verdict in (Claim.WORK, Claim.CANCELLED, Claim.DEAD) else None
    return Claimed(
        verdict,
        payload,
        "" if payload is None else row.content_type or "",
        deadline_at=row.deadline_at,
        now=row.now,
        alone=alone,
        one_by_one=one_by_one,
        postponed=postponing.postponed(row.waits),
        paused_tasks=postponing.task_names(row.paused_tasks),
        priority=row.priority,
    )


def _verdict(row: _Row, worker: str, *, may_try: bool) -> Claim:
    if row.state in ("done", "dead"):
        return Claim.DONE
    longest_s = LONGEST_LEASE_S if row.lease_s is None else row.lease_s
    if row.leased_until is not None and row.now < row.leased_until <= row.now + longest_s and row.worker != worker:
        return Claim.HELD
    if row.cancelled_at is not None:
        return Claim.CANCELLED
    in_time = row.deadline_at is None or row.now < row.deadline_at  # the items of others expire in the worker
    if in_time and (row.paused_by or (row.due_at is not None and row.now < row.due_at)):
        return Claim.WAITING
    return Claim.WORK if may_try else Claim.DEAD


_STORED = "coalesce(envelopes.stored, 0) + given.new"
_COVERED = f"CASE WHEN {_STORED} > given.there THEN {_STORED} ELSE given.there END"
_ENDS = f"(given.ends = 'dead' OR given.ends = 'done' AND {_COVERED} >= envelopes.results)"
_NAMES = ("id", "new", "there", "ends", "chunked")
_FIELDS = ", ".join(f"json_extract(value, '$.{name}') AS {name}" for name in _NAMES)
_GIVEN = {
    "sqlite": f"(SELECT {_FIELDS} FROM json_each(:_given)) AS given",  # noqa: S608 - constants
    "postgresql": "json_to_recordset(CAST(:_given AS json)) AS given "
    "(id text, new bigint, there bigint, ends text, chunked boolean)",
}
# the first terminal state wins here too
_FINISHING = {
    dialect: text(f"""
UPDATE envelopes SET
  stored = {_COVERED},
  chunked = CASE WHEN given.chunked THEN given.chunked ELSE envelopes.chunked END,
  state = CASE WHEN {_ENDS} AND envelopes.state IN ('accepted', 'published') THEN given.ends ELSE envelopes.state END,
  finished_at = CASE WHEN {_ENDS} THEN coalesce(envelopes.finished_at, :_now, {CLOCK[dialect]})
    ELSE envelopes.finished_at END,
  leased_until = CASE WHEN {_ENDS} THEN NULL ELSE envelopes.leased_until END,
  waits = CASE WHEN {_ENDS} THEN NULL ELSE envelopes.waits END,
  due_at = CASE WHEN {_ENDS} THEN NULL ELSE envelopes.due_at END,
  paused_by = CASE WHEN {_ENDS} THEN NULL ELSE envelopes.paused_by END,
  lease_s = CASE WHEN {_ENDS} THEN NULL ELSE envelopes.lease_s END
FROM {given} WHERE envelopes.id = given.id
RETURNING envelopes.job, envelopes.id, envelopes.state, envelopes.stored, envelopes.results
""")  # noqa: S608 - constants
    for dialect, given in _GIVEN.items()
}


class _Given(NamedTuple):
    """The results of a transaction, of envelopes with a row: as rows, and in whole chunks.

    `new` are those of both that were not stored before.
    """

    rows: Sequence[Result]
    chunks: Sequence[ChunkRow]
    new: Counts

    def by_envelope(self) -> Counter[str]:
        """Return the number of different results by envelope."""
        keys = {(row.envelope, row.seq, row.task) for row in self.rows}
        for chunk in self.chunks:
            keys.update((chunk.envelope, seq, chunk.task) for seq in numbers(chunk.first, chunk.size, chunk.places))
        return Counter(envelope for envelope, _, _ in keys)

    def new_by_envelope(self) -> Counter[str]:
        new: Counter[str] = Counter()
        for (_, envelope, _), count in self.new.items():
            new[envelope] += count
        return new

    @property
    def are_new(self) -> bool:
        """Whether all of them are new."""
        return self.new.total() == len(self.rows) + sum(chunk.size for chunk in self.chunks)


def _finish(
    connection: Connection, ends: Mapping[str, str], given: _Given, now: float | None
) -> tuple[tuple[str, str], ...]:
    """Count new results in their envelopes, and finish the envelopes in `ends`; return the (job, id) of the finished.

    After its INSERT, every result of a transaction is in the store. So their number covers an envelope as well, whose
    counter an older version left empty, or whose results were stored by others.
    """
    new = given.new_by_envelope()
    there = new if given.are_new else given.by_envelope()
    chunked = {chunk.envelope for chunk in given.chunks}
    changed = [
        {"id": id_, "new": new[id_], "there": there[id_], "ends": ends.get(id_), "chunked": id_ in chunked}
        for id_ in sorted({*new, *ends})
    ]
    parameters = {"_given": json.dumps(changed), "_now": now}
    found = driver_statements.run(connection, _FINISHING[connection.dialect.name], parameters)
    wanted = [row for row in found if row[1] in ends]
    for _, id_, state, stored, owed in wanted:
        if state not in ("done", "dead"):
            _note_shortfall(connection, id_, f"the attempt covered {stored} of {owed} results")
    return tuple((job, id_) for job, id_, state, _, _ in wanted if state in ("done", "dead"))


def _note_shortfall(connection: Connection, id_: str, message: str) -> None:
    """Store the error of an attempt that did not cover its envelope, and end the lease: the envelope is overdue."""
    logger.error("envelope %s: %s; it is attempted again", id_, message)
    ended = {"error": {"kind": NOT_COVERED, "message": message}, "leased_until": case((PUBLISHED, 0)), "lease_s": None}
    # the next attempt computes everything that is not stored, whatever was noted as postponed
    connection.execute(update(envelopes).where(envelopes.c.id == id_).values(waits=None, **ended))


_done = jobs.c.succeeded + jobs.c.failed + jobs.c.cancelled + jobs.c.expired
_all_done = _done + bindparam("_new") >= jobs.c.total + bindparam("_total")
_counted = (
    update(jobs)
    .where(jobs.c.id == bindparam("_job"))
    .values(
        **{state.value: jobs.c[state.value] + bindparam(f"_{state.value}") for state in ResultState},
        items=jobs.c["items"] + bindparam("_items"),
        total=jobs.c.total + bindparam("_total"),
        progressed_at=given_or_clock(),
        # a job that grows by unlisted results was not finished before
        finished_at=case(
            (and_(or_(jobs.c.finished_at.is_(None), bindparam("_total") > 0), _all_done), given_or_clock()),
            else_=jobs.c.finished_at,
        ),
    )
)


def _count(connection: Connection, inserted: Counts, accepted: Mapping[str, Accepted], now: float | None) -> None:
    by_job: dict[str, Counter[ResultState]] = {}
    for (job, _, state), count in inserted.items():
        by_job.setdefault(job, Counter())[state] += count
    for job, states in sorted(by_job.items()):
        new = {f"_{state.value}": states[state] for state in ResultState}
        more = accepted.get(job, Accepted(0, 0))
        sizes = {"_items": more.items, "_total": more.total, "_new": sum(new.values())}
        driver_statements.run(connection, _counted, {"_job": job, "_now": now, **sizes, **new})


def renew(connection: Connection, ids: Collection[str], *, worker: str, lease_s: float, now: float | None) -> int:
    """Renew the leases that this worker still has; return their number."""
    lock(connection, ids)
    renewed = update(envelopes).where(_held(connection, ids, worker))
    renewed = renewed.values(leased_until=given_or_clock() + lease_s, lease_s=lease_s)
    return connection.execute(renewed, {"_now": now}).rowcount


def release(connection: Connection, ids: Collection[str], *, worker: str) -> int:
    """Give this worker's unfinished envelopes back: the attempt is not counted; any worker may claim them at once."""
    lock(connection, ids)
    given_back = {
        "worker": None,
        "leased_until": None,
        "lease_s": None,
        "attempts": less(envelopes.c.attempts),
        **UNSUSPECTED,
    }
    return connection.execute(update(envelopes).where(_held(connection, ids, worker)).values(given_back)).rowcount


def note_failure(connection: Connection, id_: str, *, worker: str, error: dict[str, Any]) -> int:
    """Store the error of this attempt, and end its lease, so that the next attempt need not wait for it."""
    ended = {"error": cleaned(error), "leased_until": 0, "lease_s": None, **UNSUSPECTED}
    return connection.execute(update(envelopes).where(_held(connection, [id_], worker)).values(ended)).rowcount


def note_suspect(connection: Connection, id_: str, suspect: int) -> int:
    """Store the item that runs alone next; return the number of starts with this suspect, including this one."""
    tries = case((envelopes.c.suspect == suspect, envelopes.c.tries + 1), else_=1)
    noted = update(envelopes).where(envelopes.c.id == id_).values(suspect=suspect, tries=tries)
    return int(connection.execute(noted.returning(envelopes.c.tries)).scalar_one_or_none() or 0)


def _held(connection: Connection, ids: Collection[str], worker: str) -> ColumnElement[bool]:
    leased = envelopes.c.leased_until > 0
    return and_(among(connection, envelopes.c.id, ids), PUBLISHED, envelopes.c.worker == worker, leased)


def mark_published(connection: Connection, ids: Collection[str], at: float | None) -> None:
    """Record that the envelopes were sent to Redis. An envelope that a worker has already claimed is left as it is.

    So is one that is overdue at once: it was replayed or changed its priority, and the mark is of an earlier message.
    """
    lock(connection, ids)
    waiting = (among(connection, envelopes.c.id, ids), ACCEPTED, envelopes.c.accepted_at > 0)
    marked = update(envelopes).where(*waiting).values(state="published", published_at=given_or_clock())
    connection.execute(marked, {"_now": at})


#: The jobs that are cancelled and not finished.
_CANCELLED = select(jobs.c.id).where(RUNNING, jobs.c.cancelled_at.is_not(None)).limit(1000)


class Overdue(NamedTuple):
    """Envelopes that were found overdue at a time, and the condition that says so."""

    ids: list[str]
    condition: ColumnElement[bool]
    at: float


def overdue(
    connection: Connection,
    *,
    overdue_s: float,
    oldest: Mapping[Line, float | None],
    served: Collection[str],
    limit: int,
    now: float | None,
) -> Overdue:
    """Find overdue envelopes, without a lock: mostly there are none, and SQLite has only one lock for all writers.

    Every lane gets its part of `limit`, so that a tenant with many envelopes does not delay a tenant with few.
    """
    known = select(tenants.c.lane, given_or_clock().label("now")).distinct().order_by(tenants.c.lane)
    lanes: dict[int, float] = {row.lane: row.now for row in connection.execute(known, {"_now": now})}
    at = max(lanes.values())  # as a parameter: with SQL's clock in its place, PostgreSQL cannot plan
    unpublished = and_(ACCEPTED, _is_past(envelopes.c.accepted_at, at - overdue_s, at + overdue_s))
    ended = and_(PUBLISHED, envelopes.c.leased_until < at)
    ready = postponing.ready(connection, at)
    held = _of_any(connection, [unpublished, ended, *ready])
    due = [and_(condition, envelopes.c.lane == lane) for condition in held for lane in lanes]
    due.append(_leased_too_long(now))
    for line, pushed_at in sorted(oldest.items()):
        # a list says nothing while its oldest message is from the future: a clock was set back, or a sender's is wrong
        if pushed_at is None or pushed_at < at + overdue_s:
            before = at if pushed_at is None else min(at, pushed_at)
            due.append(_is_lost(line, before - overdue_s, at + overdue_s))
    if cancelled := connection.execute(_CANCELLED).scalars().all():
        theirs = among(connection, envelopes.c.job, cancelled)
        # an attempt that was under way may have postponed them
        due += [and_(theirs, waits) for waits in _of_any(connection, postponing.waiting(at))]
        if served:
            past = _is_past(envelopes.c.published_at, at - overdue_s, at + overdue_s)
            unserved = and_(PUBLISHED, envelopes.c.leased_until.is_(None), envelopes.c.model.not_in(sorted(served)))
            due.append(and_(theirs, unserved, past))
    ids: dict[str, None] = {}
    conditions: list[ColumnElement[bool]] = []
    portion = max(1, limit // len(lanes))
    for condition in due:  # separately: each condition has its own index
        most = min(portion, limit - len(ids))
        chosen = select(envelopes.c.id).where(condition).order_by(envelopes.c.id).limit(most)
        if len(ids) < limit and (found := connection.execute(chosen).scalars().all()):
            ids |= dict.fromkeys(found)
            conditions.append(condition)
    return Overdue([*ids], or_(false(), *conditions), at)


def _of_any(connection: Connection, conditions: Sequence[ColumnElement[bool]]) -> list[ColumnElement[bool]]:
    """Return the conditions that some envelope meets: mostly none does, as the index of each says at once."""
    any_of = select(envelopes.c.id).limit(1)
    return [one for one in conditions if connection.execute(any_of.where(one)).first()]


def take_overdue(connection: Connection, found: Overdue) -> list[PendingEnvelope]:
    """Put the envelopes that are still overdue back into the outbox as accepted now, and return them to be published.

    The caller publishes them and calls `mark_published`, like their first producer. If it dies before that, they are
    overdue again after the same time.
    """
    taken = _take(connection, and_(among(connection, envelopes.c.id, found.ids), found.condition), found.at)
    return _pending(connection, taken) if taken else []


def _is_past(time: ColumnElement[float], before: float, after: float) -> ColumnElement[bool]:
    """Return whether a time is before `before`, or so far ahead that a clock was wrong."""
    return or_(time < before, time > after)


def _leased_too_long(now: float | None) -> ColumnElement[bool]:
    """Return whether a lease ends later than a lease that begins now: a clock was wrong.

    It is now when the statement runs: leases may have begun since the lanes were read. The range of the index holds the
    running leases, as many as the workers hold envelopes.
    """
    until, at = envelopes.c.leased_until, clock() if now is None else literal(now, Double())
    return and_(PUBLISHED, until > at, until > at + func.coalesce(envelopes.c.lease_s, LONGEST_LEASE_S))


def _is_lost(line: Line, before: float, after: float) -> ColumnElement[bool]:
    model, priority, lane = line
    own = and_(envelopes.c.model == model, envelopes.c.priority == priority, envelopes.c.lane == lane)
    past = _is_past(envelopes.c.published_at, before, after)
    waits = or_(envelopes.c.due_at.is_not(None), envelopes.c.paused_by.is_not(None))
    return and_(PUBLISHED, envelopes.c.leased_until.is_(None), own, past, ~waits)


def _take(connection: Connection, condition: ColumnElement[bool], now: float) -> list[str]:
    # A CTE, because PostgreSQL may run a locking subquery more than once.
    chosen = (
        select(envelopes.c.id).where(condition).order_by(envelopes.c.id).with_for_update(skip_locked=True).cte("chosen")
    )
    taken = connection.execute(
        update(envelopes)
        .where(envelopes.c.id.in_(select(chosen.c.id)))
        .values(
            state="accepted",
            accepted_at=now,
            published_at=None,
            leased_until=None,
            lease_s=None,
            deaths=_deaths,
            due_at=None,
            paused_by=None,
        )
        .returning(envelopes.c.id)
    )
    return list(taken.scalars())


def _pending(connection: Connection, ids: Collection[str]) -> list[PendingEnvelope]:
    columns = ("id", "job", "model", "priority", "created_at", "accepted_at", "attempts", "lane")
    rows = connection.execute(
        select(
            *(envelopes.c[name] for name in columns),
            func.coalesce(payloads.c.payload, b"").label("payload"),
            func.coalesce(payloads.c.content_type, "").label("content_type"),
            jobs.c.cancelled_at.is_not(None).label("is_cancelled"),
        )
        .join(jobs, jobs.c.id == envelopes.c.job)
        .outerjoin(payloads, payloads.c.envelope == envelopes.c.id)
        .where(among(connection, envelopes.c.id, ids), UNFINISHED)
        .order_by(envelopes.c.priority, envelopes.c.id)
    ).mappings()
    return [PendingEnvelope(**row) for row in rows]
