"""Delete finished jobs with all their rows, or only their inputs.

A purge deletes the job's row first, which hides the job at once. Its id stays in `purged_jobs` until its envelopes and
results are deleted, in portions of a transaction each. So the next purge completes a purge that was killed. A job that
is created again under the id keeps what is newer than the purge.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any, TypeAlias

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Table,
    and_,
    delete,
    func,
    insert,
    null,
    or_,
    select,
    text,
    tuple_,
)
from sqlalchemy.sql.elements import KeyedColumnElement

from results_store.errors import StoreError
from results_store.records import Purged
from results_store.sql import driver_statements
from results_store.sql.auditing.audit_log import Actor, note
from results_store.sql.columns import among, clock
from results_store.sql.database import Database, Weight
from results_store.sql.schema import (
    FAILED,
    HAS_TTL,
    audit_log,
    batches,
    cached_results,
    celery_chords,
    celery_groups,
    celery_tasks,
    envelopes,
    jobs,
    payloads,
    purged_jobs,
    result_chunks,
    results,
    schedule_runs,
    webhooks,
)

Condition: TypeAlias = Callable[[Connection], ColumnElement[bool]]

#: Jobs and rows per transaction: bounded, so that workers never wait long for a purge.
JOBS, ROWS = 500, 5000

#: For this time a job without items may still wait for its first, from a slow source or for a full fleet.
FIRST_ITEM_S = 3600.0

#: Results of no job, as of a foreign message, are kept for this time: as long as Celery keeps results by default.
STRAY_S = 86400.0


def drop_inputs(connection: Connection, done: Collection[str]) -> None:
    """Delete the payloads of finished envelopes without a failed result. A replay needs only the other payloads."""
    failed = _failed().where(among(connection, envelopes.c.id, done))
    connection.execute(
        delete(payloads).where(among(connection, payloads.c.envelope, done), payloads.c.envelope.not_in(failed))
    )
    # digests of them, which a worker with other settings may have kept
    mine = select(envelopes.c.job).where(among(connection, envelopes.c.id, done))
    connection.execute(delete(cached_results).where(cached_results.c.job.in_(mine)))


class Retention:
    """Deletes old rows of the store, as `Store.retention`."""

    def __init__(self, database: Database, *, jobs: int = JOBS, rows: int = ROWS) -> None:
        self._database = database
        self._jobs = jobs
        self._rows = rows

    def purge(
        self,
        *,
        finished_before: float | None = None,
        keep_results: bool = False,
        now: float | None = None,
        by: Actor | None = None,
    ) -> Purged:
        """Delete finished jobs after their `ttl_s`; without a `ttl_s`, if they finished before `finished_before`.

        A job that never got an item is deleted an hour after its `ttl_s`. Envelopes, inputs and results are deleted
        with their job, and results of no job after a day, or if they are older than `finished_before`. With
        `finished_before`, older batches and results in Celery's backend are deleted too. With `keep_results` only the
        inputs are deleted, and these jobs can no longer be replayed. Unfinished jobs stay; cancel them first. The purge
        takes many short transactions; the next purge completes an interrupted one. Times are by the store's clock,
        except those of batches and Celery's tasks, which are by their workers' clocks.
        """
        if now is None:
            with self._database.read() as connection:
                now = driver_statements.store_time(connection)
        if by is not None:
            with self._database.write(Weight.ACCEPTED) as connection:
                kept = {"finished_before": finished_before, "inputs_only": keep_results or None}
                note(connection, by, "purge", "jobs", **kept)
        purge = self._purge_inputs if keep_results else self._purge_jobs
        return purge(finished_before=finished_before, now=now)

    def due(self, finished_before: float | None) -> int:
        """Return the number of jobs that `purge` would delete now."""
        with self._database.read() as connection:
            due = _due(finished_before, driver_statements.store_time(connection))
            return connection.execute(select(func.count()).select_from(jobs).where(due)).scalar_one()

    def purge_audit(self, *, older_than_s: float) -> int:
        """Delete the entries of the audit log of that age; return their number."""
        return self._remove(audit_log, lambda _: audit_log.c.at < clock() - older_than_s)

    def vacuum(self) -> int:
        """Rebuild SQLite's file without its free pages, while all writers wait; return the bytes that it saves.

        Raises StoreError for PostgreSQL, whose autovacuum lets later rows take the space.
        """
        if not self._database.sqlite:
            raise StoreError(
                "PostgreSQL makes room by its autovacuum, and smaller files by `VACUUM FULL`; leave out --vacuum"
            )
        before = self._database.path.stat().st_size
        with self._database.cursor() as cursor:
            cursor.execute("VACUUM")
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return max(0, before - self._database.path.stat().st_size)  # a small file may grow by a page

    def drop_inputs_of_pipelines(self) -> int:
        """Delete the payloads of finished pipelines, except of envelopes with a failed result; return their number.

        A running pipeline keeps its payloads, because a later step may still read them.
        """
        removed = 0
        over = and_(jobs.c.pipeline.is_not(null()), jobs.c.finished_at.is_not(None))
        for page in self._pages(over):

            def unwanted(connection: Connection, page: Collection[str] = page) -> ColumnElement[bool]:
                failed = _failed().where(among(connection, envelopes.c.job, page))
                inputs = _inputs_of(_still(over, envelopes.c.job, page))
                return and_(inputs(connection), payloads.c.envelope.not_in(failed))

            removed += self._remove(payloads, unwanted)
        return removed

    def with_inputs(self, ids: Collection[str]) -> set[str]:
        """Return the ids of these jobs that exist and are unfinished, or still have inputs for a replay."""
        kept = select(envelopes.c.id).join(payloads, payloads.c.envelope == envelopes.c.id)
        kept = kept.where(envelopes.c.job == jobs.c.id)
        wanted = or_(jobs.c.finished_at.is_(None), kept.exists())
        with self._database.read() as connection:
            return set(connection.execute(select(jobs.c.id).where(among(connection, jobs.c.id, ids), wanted)).scalars())

    def existing(self, ids: Collection[str]) -> set[str]:
        """Return the ids of these jobs that exist."""
        with self._database.read() as connection:
            return _existing(connection, ids)

    def _purge_jobs(self, *, finished_before: float | None, now: float) -> Purged:
        """Remove the finished jobs that are due, with envelopes, inputs and results, and older batches."""
        gone = self._hide(_due(finished_before, now), now)
        swept = self._sweep()
        stored_before = now - STRAY_S if finished_before is None else finished_before
        strays = sum(self._remove_strays(owners, stored_before) for owners in self._owners_of_results())
        found = replace(swept, jobs=gone, results=swept.results + strays)
        if finished_before is None:
            return found
        self._remove(schedule_runs, lambda _: schedule_runs.c.ended_at < finished_before)
        return replace(
            found,
            batches=self._remove(batches, lambda _: batches.c.started_at < finished_before),
            celery_results=remove_celery_results(self._database, finished_before, finished_before),
        )

    def _purge_inputs(self, *, finished_before: float | None, now: float) -> Purged:
        """Remove the inputs of the finished jobs that are due. The jobs and their results stay."""
        removed = 0
        due = _due(finished_before, now)
        for page in self._pages(due):
            removed += self._remove(payloads, _inputs_of(_still(due, envelopes.c.job, page)))
            # whose digests tell of the inputs
            self._remove(cached_results, _still(due, cached_results.c.job, page))
        return Purged(payloads=removed)

    def _hide(self, due: ColumnElement[bool], now: float) -> int:
        hidden = 0
        while True:
            with self._database.write(Weight.ACCEPTED) as connection:
                chosen = (
                    select(jobs.c.id).where(due).order_by(jobs.c.id).limit(self._jobs).with_for_update(skip_locked=True)
                )
                ids = list(connection.execute(chosen).scalars())
                if not ids:
                    return hidden
                # an earlier job of the id may still be there
                connection.execute(delete(purged_jobs).where(among(connection, purged_jobs.c.job, ids)))
                connection.execute(insert(purged_jobs), [{"job": id_, "purged_at": now} for id_ in ids])
                connection.execute(delete(webhooks).where(among(connection, webhooks.c.job, ids)))
                connection.execute(delete(jobs).where(among(connection, jobs.c.id, ids)))
            hidden += len(ids)

    def _sweep(self) -> Purged:
        """Remove the remains of hidden jobs, inputs first."""
        inputs = owned = answers = 0
        first = select(func.min(purged_jobs.c.purged_at)).scalar_subquery()
        page = select(purged_jobs.c.job, purged_jobs.c.purged_at).where(purged_jobs.c.purged_at == first)
        while True:
            with self._database.read() as connection:
                found = connection.execute(page.limit(self._jobs)).all()
            if not found:
                return Purged(envelopes=owned, payloads=inputs, results=answers)
            hidden, at = [row.job for row in found], found[0].purged_at
            theirs = _remains(envelopes.c.job, envelopes.c.created_at, hidden, at)
            inputs += self._remove(payloads, _inputs_of(theirs))
            owned += self._remove(envelopes, theirs)
            answers += self._remove(results, _remains(results.c.job, results.c.stored_at, hidden, at))
            answers += self._remove_chunks(_remains(result_chunks.c.job, result_chunks.c.stored_at, hidden, at))
            self._remove(cached_results, _remains(cached_results.c.job, cached_results.c.stored_at, hidden, at))
            with self._database.write(Weight.NOTE) as connection:  # unless a later job of the id was hidden meanwhile
                same = and_(among(connection, purged_jobs.c.job, hidden), purged_jobs.c.purged_at == at)
                connection.execute(delete(purged_jobs).where(same))

    def _remove_chunks(self, condition: Condition) -> int:
        """Remove chunks; return the number of their results."""
        size = func.coalesce(func.sum(result_chunks.c.size), 0)
        with self._database.read() as connection:
            answers = connection.execute(select(size).where(condition(connection))).scalar_one()
        self._remove(result_chunks, condition)
        return int(answers)

    def _owners_of_results(self) -> Iterator[list[str]]:
        last = ""
        while True:
            with self._database.read() as connection:
                owners = list(connection.execute(_NEXT_OWNERS, {"last": last, "limit": self._rows}).scalars())
            if not owners:
                return
            yield owners
            last = owners[-1]

    def _remove_strays(self, owners: Collection[str], stored_before: float) -> int:
        """Remove old results without a job: of a forged message, or computed again after their job was purged."""
        with self._database.read() as connection:
            strays = set(owners) - _existing(connection, owners)
        if not strays:
            return 0
        old = results.c.stored_at < stored_before
        return self._remove(results, lambda connection: and_(among(connection, results.c.job, strays), old))

    def _pages(self, due: ColumnElement[bool]) -> Iterator[list[str]]:
        last = ""
        while True:
            page = select(jobs.c.id).where(due, jobs.c.id > last).order_by(jobs.c.id).limit(self._jobs)
            with self._database.read() as connection:
                ids = list(connection.execute(page).scalars())
            if not ids:
                return
            yield ids
            last = ids[-1]

    def _remove(self, rows: Table, condition: Condition) -> int:
        return in_portions(self._database, rows, condition, self._rows)


def _failed() -> Select[Any]:
    """Return a query for the envelopes with a failed result."""
    theirs = and_(envelopes.c.id == results.c.envelope, envelopes.c.job == results.c.job)
    return select(results.c.envelope).join(envelopes, theirs).where(FAILED)


def _existing(connection: Connection, ids: Collection[str]) -> set[str]:
    return set(connection.execute(select(jobs.c.id).where(among(connection, jobs.c.id, ids))).scalars())


def _due(finished_before: float | None, now: float) -> ColumnElement[bool]:
    # a job that never got an item never finishes
    empty = and_(jobs.c.total == 0, jobs.c.created_at < now - jobs.c.ttl_s - FIRST_ITEM_S)
    own = and_(HAS_TTL, or_(jobs.c.finished_at < now - jobs.c.ttl_s, empty))
    if finished_before is None:
        return own
    # `created_at` is never later than `finished_at`, and has an index
    old = and_(
        jobs.c.ttl_s.is_(None),
        jobs.c.created_at < finished_before,
        or_(jobs.c.finished_at < finished_before, jobs.c.total == 0),
    )
    return or_(own, old)


# One seek in the index a job, however many results each has.
_NEXT_OWNERS = text("""
WITH RECURSIVE owners (job) AS (
  SELECT min(job) FROM results WHERE job > :last
  UNION ALL SELECT (SELECT min(job) FROM results WHERE job > owners.job) FROM owners WHERE job IS NOT NULL
)
SELECT job FROM owners WHERE job IS NOT NULL LIMIT :limit
""")


def _remains(
    job: KeyedColumnElement[str], at: ColumnElement[float], hidden: Collection[str], purged_at: float
) -> Condition:
    """Rows of hidden jobs. Newer ones are of a job that was created again under the id, if there is one."""
    again = select(jobs.c.id).where(jobs.c.id == job).exists()
    is_old = or_(at.is_(None), at < purged_at, ~again)
    return lambda connection: and_(among(connection, job, hidden), is_old)


def _still(due: ColumnElement[bool], job: KeyedColumnElement[str], page: Collection[str]) -> Condition:
    """Rows of the jobs of a page that are `due` when the statement runs: a finished job may open again."""
    return lambda connection: job.in_(select(jobs.c.id).where(among(connection, jobs.c.id, page), due))


def _inputs_of(theirs: Condition) -> Condition:
    """Payloads of the envelopes that match a condition."""
    return lambda connection: payloads.c.envelope.in_(select(envelopes.c.id).where(theirs(connection)))


def remove_celery_results(
    database: Database, before: ColumnElement[float] | float, chords_before: ColumnElement[float] | float
) -> int:
    """Delete the finished tasks and the groups from before a time, and chords; return the number of rows."""
    tasks = in_portions(database, celery_tasks, lambda _: celery_tasks.c.done_at < before)
    groups = in_portions(database, celery_groups, lambda _: celery_groups.c.saved_at < before)
    chords = in_portions(database, celery_chords, lambda _: celery_chords.c.updated_at < chords_before)
    return tasks + groups + chords


def in_portions(database: Database, rows: Table, condition: Condition, most: int = ROWS) -> int:
    """Delete the rows that match `condition`, in key order, a transaction per portion; return their number."""
    key = list(rows.primary_key.columns)
    removed = 0
    while True:
        with database.write(Weight.NOTE) as connection:
            picked = select(*key).where(condition(connection)).order_by(*key).limit(most).with_for_update()
            if not database.sqlite:  # PostgreSQL may run a locking subquery more than once, but not a CTE
                picked = select(*picked.cte("portion").columns)
            count = connection.execute(delete(rows).where(tuple_(*key).in_(picked))).rowcount
        removed += count
        if count < most:
            return removed
