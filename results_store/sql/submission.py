"""Write jobs and the outbox, for producers. Each function runs in the caller's transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Insert, bindparam, insert, or_, select, update

from results_store.errors import SubmissionConflict, UnknownJob
from results_store.records import FoundJob, JobStatus, NewEnvelope, NewJob
from results_store.sql import driver_statements
from results_store.sql.auditing.audit_log import Actor, note
from results_store.sql.columns import clock, given_or_clock, text
from results_store.sql.reading import found_job, job_status
from results_store.sql.result_rows import insert_new
from results_store.sql.schema import envelopes, jobs, payloads
from results_store.sql.waiting import postponing


def create_job(connection: Connection, job: NewJob) -> FoundJob:
    """Insert the job, or return the existing job with its id or idempotency key."""
    while True:
        connection.execute(_timed(insert_new(connection, jobs)), [_job_row(job)])
        if (found := find_job(connection, job)) is not None:  # unless a purge deleted it since the insertion met it
            return found


def find_job(connection: Connection, job: NewJob) -> FoundJob | None:
    """Return the existing job with its id or idempotency key, or None."""
    mine = jobs.c.id == job.id
    if (key := _own_key(job)) is not None:
        mine = or_(mine, jobs.c.idempotency_key == key)
    row = connection.execute(select(jobs).where(mine).limit(1)).mappings().one_or_none()
    return None if row is None else found_job(row)


def add_envelopes(
    connection: Connection,
    new: Sequence[NewEnvelope],
    created: Sequence[NewJob],
    expected_items: int | None,
    fingerprint: str | None,
) -> float | None:
    """Insert the jobs in `created`, put the envelopes into the outbox, and count them in their jobs.

    Returns the store's time, or None without envelopes. Raises SubmissionConflict if another job has the idempotency
    key of one of them.
    """
    for job in created:
        inserted = _timed(insert_new(connection, jobs)).returning(jobs.c.id)
        if connection.execute(inserted, _job_row(job)).first() is None:
            raise SubmissionConflict("another caller began a job with this idempotency key; submit again to go on")
    if not new:
        return None
    # The counting comes first: it detects an unknown job, and its row lock makes `expected_items` safe.
    times = [
        _count(connection, job, items, total, expected_items, fingerprint)
        for job, (items, total) in sorted(_totals(new).items())
    ]
    insert_envelopes(connection, new, max(times))
    return max(times)


def insert_envelopes(connection: Connection, new: Sequence[NewEnvelope], now: float) -> None:
    """Insert envelopes with their payloads. Their job must have counted them. `now` is the store's time."""
    connection.execute(insert(envelopes), [_envelope_row(envelope, now) for envelope in new])
    connection.execute(
        insert(payloads),
        [{"envelope": e.id, "payload": e.payload, "content_type": e.content_type} for e in new],
    )


def cancel_job(connection: Connection, job: str, at: float | None, by: Actor | None = None) -> JobStatus:
    """Set `cancelled_at` of a job that is neither finished nor cancelled. Its envelopes wait for nothing any more."""
    postponing.wake(connection, job)
    cancelled = connection.execute(
        update(jobs)
        .where(jobs.c.id == job, jobs.c.cancelled_at.is_(None), jobs.c.finished_at.is_(None))
        .values(cancelled_at=given_or_clock()),
        {"_now": at},
    )
    if cancelled.rowcount:
        note(connection, by, "cancel", f"job:{job}")
    row = connection.execute(select(jobs).where(jobs.c.id == job)).mappings().one_or_none()
    if row is None:
        raise UnknownJob(f"no job {job!r}; `argosy status` lists the jobs")
    return job_status(row)


# A job whose first chunk is already done opens again.
_counted = (
    update(jobs)
    .where(jobs.c.id == bindparam("_job"))
    .values(items=jobs.c["items"] + bindparam("_items"), total=jobs.c.total + bindparam("_total"), finished_at=None)
    .returning(clock())
)
_counted_if_expected = _counted.where(jobs.c["items"] == bindparam("_expected")).values(
    fingerprint=bindparam("_fingerprint")
)


def _count(
    connection: Connection, job: str, items: int, total: int, expected_items: int | None, fingerprint: str | None
) -> float:
    """Count the envelopes of a job; return the store's time."""
    given, counted = {"_job": job, "_items": items, "_total": total}, _counted
    if expected_items is not None:
        given, counted = {**given, "_expected": expected_items, "_fingerprint": fingerprint}, _counted_if_expected
    if found := driver_statements.run(connection, counted, given):
        return float(found[0][0])
    if connection.execute(select(jobs.c.id).where(jobs.c.id == job)).first() is None:
        raise UnknownJob(f"no job {job!r}; create it before adding to it")
    raise SubmissionConflict(f"job {job!r} no longer has {expected_items} items; read it again before adding to it")


def _totals(new: Sequence[NewEnvelope]) -> dict[str, tuple[int, int]]:
    items: Counter[str] = Counter()
    results: Counter[str] = Counter()
    for envelope in new:
        items[envelope.job] += envelope.items
        results[envelope.job] += envelope.results
    return {job: (items[job], results[job]) for job in items}


def _timed(statement: Insert) -> Insert:
    """Return an INSERT of jobs whose time of creation may be the store's."""
    return statement.values(created_at=given_or_clock("_created_at"))


def _job_row(job: NewJob) -> dict[str, Any]:
    return {
        "id": job.id,
        "name": text(job.name),
        "priority": job.priority,
        "idempotency_key": _own_key(job),
        "_created_at": job.created_at,
        "ttl_s": job.ttl_s,
        "tenant": job.tenant,
        "pipeline": job.pipeline,
        "request": job.request,
    }


def _own_key(job: NewJob) -> str | None:
    """Return a job's idempotency key, prefixed by its tenant: guessing a key never reaches another tenant's job."""
    if job.idempotency_key is None or not job.tenant:
        return text(job.idempotency_key)
    return text(f"{job.tenant}\x1f{job.idempotency_key}")


def _envelope_row(envelope: NewEnvelope, now: float) -> dict[str, Any]:
    created_at = now if envelope.created_at is None else envelope.created_at
    return {
        "id": envelope.id,
        "job": envelope.job,
        "model": envelope.model,
        "priority": envelope.priority,
        "items": envelope.items,
        "results": envelope.results,
        "created_at": created_at,
        "accepted_at": created_at,
        "deadline_at": envelope.deadline_at if envelope.deadline_s is None else created_at + envelope.deadline_s,
        "lane": envelope.lane,
        "state": "accepted",
        "stored": 0,
    }
