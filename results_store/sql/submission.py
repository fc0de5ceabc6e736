"""Write jobs and the outbox, for producers. Each function runs in the caller's transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, insert, or_, select, update

from results_store.errors import SubmissionConflict, UnknownJob
from results_store.records import JobStatus, NewEnvelope, NewJob
from results_store.sql.columns import text
from results_store.sql.reading import job_status
from results_store.sql.result_rows import insert_new
from results_store.sql.schema import envelopes, jobs, payloads


def create_job(connection: Connection, job: NewJob) -> JobStatus:
    """Insert the job, or return the existing job with its id or idempotency key."""
    row = _job_row(job)
    connection.execute(insert_new(connection, jobs), [row])
    mine = jobs.c.id == job.id
    if row["idempotency_key"] is not None:
        mine = or_(mine, jobs.c.idempotency_key == row["idempotency_key"])
    return job_status(connection.execute(select(jobs).where(mine).limit(1)).mappings().one())


def add_envelopes(
    connection: Connection, new: Sequence[NewEnvelope], created: Sequence[NewJob], expected_items: int | None
) -> None:
    """Insert the jobs in `created`, put the envelopes into the outbox, and count them in their jobs."""
    if created:
        connection.execute(insert(jobs), [_job_row(job) for job in created])
    if not new:
        return
    # The counting comes first: it detects an unknown job, and its row lock makes `expected_items` safe.
    for job, (items, total) in sorted(_totals(new).items()):
        _count(connection, job, items, total, expected_items)
    insert_envelopes(connection, new)


def insert_envelopes(connection: Connection, new: Sequence[NewEnvelope]) -> None:
    """Insert envelopes with their payloads. Their job must have counted them."""
    connection.execute(insert(envelopes), [_envelope_row(envelope) for envelope in new])
    connection.execute(
        insert(payloads),
        [{"envelope": e.id, "payload": e.payload, "content_type": e.content_type} for e in new],
    )


def cancel_job(connection: Connection, job: str, at: float) -> JobStatus:
    """Set `cancelled_at` of a job that is neither finished nor cancelled."""
    connection.execute(
        update(jobs)
        .where(jobs.c.id == job, jobs.c.cancelled_at.is_(None), jobs.c.finished_at.is_(None))
        .values(cancelled_at=at)
    )
    row = connection.execute(select(jobs).where(jobs.c.id == job)).mappings().one_or_none()
    if row is None:
        raise UnknownJob(f"no job {job!r}; `argosy status` lists the jobs")
    return job_status(row)


# A job whose first chunk is already done opens again.
_counted = (
    update(jobs)
    .where(jobs.c.id == bindparam("_job"))
    .values(items=jobs.c["items"] + bindparam("_items"), total=jobs.c.total + bindparam("_total"), finished_at=None)
)
_counted_if_expected = _counted.where(jobs.c["items"] == bindparam("_expected"))


def _count(connection: Connection, job: str, items: int, total: int, expected_items: int | None) -> None:
    given = {"_job": job, "_items": items, "_total": total}
    if expected_items is None:
        changed = connection.execute(_counted, given).rowcount
    else:
        changed = connection.execute(_counted_if_expected, {**given, "_expected": expected_items}).rowcount
    if changed:
        return
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


def _job_row(job: NewJob) -> dict[str, Any]:
    return {
        "id": job.id,
        "name": text(job.name),
        "priority": job.priority,
        "idempotency_key": _own_key(job),
        "created_at": job.created_at,
        "ttl_s": job.ttl_s,
        "tenant": job.tenant,
        "pipeline": job.pipeline,
    }


def _own_key(job: NewJob) -> str | None:
    """Return a job's idempotency key, prefixed by its tenant: guessing a key never reaches another tenant's job."""
    if job.idempotency_key is None or not job.tenant:
        return text(job.idempotency_key)
    return text(f"{job.tenant}\x1f{job.idempotency_key}")


def _envelope_row(envelope: NewEnvelope) -> dict[str, Any]:
    return {
        "id": envelope.id,
        "job": envelope.job,
        "model": envelope.model,
        "priority": envelope.priority,
        "items": envelope.items,
        "results": envelope.results,
        "created_at": envelope.created_at,
        "accepted_at": envelope.created_at,
        "deadline_at": envelope.deadline_at,
        "lane": envelope.lane,
        "state": "accepted",
    }
