"""Read progress, failures, and the figures for operators. No function here writes or locks.

All results of a job, also those in chunks, are read by `results_store.sql.chunks.stored_results`.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, RowMapping, and_, case, exists, func, not_, or_, select, tuple_

from results_store.errors import UnknownJob
from results_store.records import (
    ALONE_AFTER_DEATHS,
    Backlog,
    Depth,
    EnvelopeState,
    FailureCount,
    FoundJob,
    JobFilter,
    JobStatus,
    Result,
    ResultState,
    RetriedWork,
)
from results_store.sql.columns import among, clock, text
from results_store.sql.schema import DEAD, FAILED, RUNNING, UNFINISHED, envelopes, jobs, payloads, results
from results_store.sql.waiting.postponing import IS_PAUSED, IS_POSTPONED

_OF_SUBMISSION = frozenset(("idempotency_key", "request", "fingerprint"))


def job_status(row: RowMapping) -> JobStatus:
    """Return the job in a row of `jobs`."""
    return JobStatus(**{name: value for name, value in row.items() if name not in _OF_SUBMISSION})


def found_job(row: RowMapping) -> FoundJob:
    """Return the job in a row of `jobs`, for a submission that continues it."""
    return FoundJob(job_status(row), row["request"], row["fingerprint"])


def job(connection: Connection, id_: str) -> JobStatus:
    row = connection.execute(select(jobs).where(jobs.c.id == text(str(id_)))).mappings().one_or_none()
    if row is None:
        raise UnknownJob(f"no job {id_!r}; `argosy status` lists the jobs")
    return job_status(row)


#: The fewest characters of an id that may stand for it, as in git.
SHORTEST_PREFIX = 4
_CANDIDATES = 5


def job_id(connection: Connection, prefix: str) -> str:
    prefix = text(str(prefix)) or ""
    found = list(connection.execute(select(jobs.c.id).where(jobs.c.id == prefix)).scalars())
    if not found and len(prefix) >= SHORTEST_PREFIX:
        wanted = select(jobs.c.id).where(jobs.c.id.startswith(prefix, autoescape=True)).order_by(jobs.c.id.desc())
        found = list(connection.execute(wanted.limit(_CANDIDATES + 1)).scalars())
    if len(found) == 1:
        return str(found[0])
    if found:
        names = ", ".join(found[:_CANDIDATES]) + (", …" if len(found) > _CANDIDATES else "")
        raise UnknownJob(f"{prefix!r} begins the ids of several jobs: {names}; write more of it")
    raise UnknownJob(f"no job {prefix!r}; `argosy status` lists the jobs")


def cancelled_among(connection: Connection, ids: Collection[str]) -> set[str]:
    found = select(jobs.c.id).where(among(connection, jobs.c.id, ids), jobs.c.cancelled_at.is_not(None))
    return set(connection.execute(found).scalars())


_DONE = jobs.c.succeeded + jobs.c.failed + jobs.c.cancelled + jobs.c.expired


def newest_jobs(
    connection: Connection,
    limit: int,
    before: tuple[float, str] | None,
    tenant: str | None,
    text: str = "",
    having: JobFilter | None = None,
) -> list[JobStatus]:
    wanted = select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
    if tenant is not None:
        wanted = wanted.where(jobs.c.tenant == tenant)
    if before is not None:
        wanted = wanted.where(tuple_(jobs.c.created_at, jobs.c.id) < before)
    if text:
        places = (jobs.c.name, jobs.c.tenant, jobs.c.id)
        wanted = wanted.where(or_(*(place.icontains(text, autoescape=True) for place in places)))
    if having is not None:
        wanted = wanted.where(jobs.c.total > _DONE if having == "unfinished" else jobs.c[having] > 0)
    return [job_status(row) for row in connection.execute(wanted).mappings()]


def running_alone(connection: Connection) -> tuple[int, str | None]:
    wanted = select(func.count(), func.min(envelopes.c.job))
    number, job = connection.execute(wanted.where(UNFINISHED, envelopes.c.deaths >= ALONE_AFTER_DEATHS)).one()
    return number, job


def backlog(connection: Connection) -> list[Backlog]:
    key = (envelopes.c.model, envelopes.c.priority)
    held = and_(envelopes.c.leased_until.is_not(None), envelopes.c.leased_until > clock())
    waits = not_(or_(held, IS_PAUSED, IS_POSTPONED))
    oldest = func.min(case((waits, envelopes.c.created_at)))
    numbers = (func.count(case((held, 1))), func.count(case((waits, 1))), oldest)
    rows = connection.execute(select(*key, *numbers).where(UNFINISHED).group_by(*key).order_by(*key))
    names = ("model", "priority", "held", "waiting", "oldest_at")
    return [Backlog(**dict(zip(names, row, strict=True))) for row in rows]


def unowed(connection: Connection, older_than_s: float) -> list[str]:
    owed = exists().where(envelopes.c.job == jobs.c.id, UNFINISHED)
    wanted = select(jobs.c.id).where(RUNNING, jobs.c.total > _DONE, jobs.c.created_at < clock() - older_than_s, ~owed)
    return list(connection.execute(wanted.order_by(jobs.c.id)).scalars())


def given_up(connection: Connection) -> tuple[int, float | None]:
    number, last_at = connection.execute(select(func.count(), func.max(envelopes.c.finished_at)).where(DEAD)).one()
    return number, last_at


def inputs(connection: Connection, ids: Collection[str]) -> dict[str, tuple[bytes, str]]:
    wanted = select(payloads).where(among(connection, payloads.c.envelope, list(ids)))
    return {id_: (payload, content_type) for id_, payload, content_type in connection.execute(wanted)}


def recent_failures(connection: Connection, limit: int, job_: str | None, tenant: str | None) -> list[Result]:
    wanted = select(results).where(FAILED).order_by(results.c.stored_at.desc()).limit(limit)
    if job_ is not None:
        wanted = wanted.where(results.c.job == job_)
    if tenant is not None:
        wanted = wanted.where(results.c.job.in_(select(jobs.c.id).where(jobs.c.tenant == tenant)))
    return [result(row) for row in connection.execute(wanted).mappings()]


def count_failures(connection: Connection, job_: str | None) -> list[FailureCount]:
    kind = results.c.error["kind"].as_string().label("kind")
    message = func.min(results.c.error["message"].as_string())
    number = func.count().label("number")
    wanted = select(results.c.task, kind, number, message).where(FAILED)
    if job_ is not None:
        wanted = wanted.where(results.c.job == job_)
    rows = connection.execute(wanted.group_by(results.c.task, "kind").order_by(number.desc(), results.c.task, "kind"))
    return [FailureCount(task, kind or "", count, message or "") for task, kind, count, message in rows]


def retried_work(connection: Connection, job_: str | None) -> RetriedWork | None:
    message = func.max(envelopes.c.error["message"].as_string())
    wanted = select(func.count(), func.min(envelopes.c.due_at), message).where(IS_POSTPONED)
    number, due_at, said = connection.execute(wanted if job_ is None else wanted.where(envelopes.c.job == job_)).one()
    return RetriedWork(number, due_at, said or "") if number else None


def unfinished_models(connection: Connection, job_: str) -> list[str]:
    wanted = select(envelopes.c.model).where(UNFINISHED, envelopes.c.job == job_).distinct()
    return list(connection.execute(wanted).scalars())


def depth(connection: Connection) -> list[Depth]:
    key = (envelopes.c.model, envelopes.c.priority, envelopes.c.state)
    sums = (func.sum(envelopes.c["items"]), func.sum(envelopes.c.results), func.min(envelopes.c.created_at))
    rows = connection.execute(select(*key, func.count(), *sums).where(UNFINISHED).group_by(*key).order_by(*key))
    return [
        Depth(
            model=model,
            priority=priority,
            state=EnvelopeState(state),
            envelopes=count,
            items=int(items),
            results=int(owed),
            oldest_at=oldest_at,
        )
        for model, priority, state, count, items, owed, oldest_at in rows
    ]


def result(row: RowMapping) -> Result:
    """Return the result in a row of `results`."""
    return Result(**{**row, "state": ResultState(row["state"])})
