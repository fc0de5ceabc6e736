"""Dead letters (envelopes that failed after too many attempts), failed results, and their replay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, Text, and_, bindparam, delete, or_, select, update

from results_store.records import DeadLetter, EnvelopeState, PostponedResult, Replayed, Result, ResultState
from results_store.sql.auditing.audit_log import Actor, note
from results_store.sql.columns import among, clock
from results_store.sql.database import Database, Weight
from results_store.sql.reading import result as result_in
from results_store.sql.schema import DEAD, FAILED, FINISHED, envelopes, jobs, payloads, results, webhooks
from results_store.sql.waiting import postponing

#: Error kind of the items of an envelope that was attempted too often.
TOO_MANY_ATTEMPTS = "TooManyAttempts"


def explained(connection: Connection, given: Sequence[Result], dead: Collection[str]) -> list[Result]:
    """Return `given`, with an error for each failed result of a `dead` envelope that has none.

    The error describes the attempts. Runs in the caller's transaction.
    """
    found = connection.execute(
        select(envelopes.c.id, envelopes.c.attempts, envelopes.c.worker, envelopes.c.error).where(
            among(connection, envelopes.c.id, dead)
        )
    )
    errors = {id_: _given_up(attempts, worker, error) for id_, attempts, worker, error in found}
    return [
        replace(row, error=errors.get(row.envelope)) if row.state is ResultState.FAILED and row.error is None else row
        for row in given
    ]


def _given_up(attempts: int, worker: str | None, cause: dict[str, Any] | None) -> dict[str, Any]:
    message = f"given up after {attempts} attempts, the last by {worker}"
    message += (
        f": {cause.get('message')}" if cause else "; the worker died or lost its lease without reporting an error"
    )
    error = {"kind": TOO_MANY_ATTEMPTS, "message": message, "attempts": attempts, "worker": worker}
    return {**error, "cause": cause} if cause else error


class DeadLetters:
    """The dead letters of the store, and the envelopes with failed results, as `Store.dead_letters`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def newest(self, *, job: str | None = None, limit: int = 100, tenant: str | None = None) -> list[DeadLetter]:
        """Return the dead letters, newest first, with their payloads and failed results.

        `job` and `tenant` limit them to a job or tenant.
        """
        wanted = select(envelopes, payloads.c.payload, payloads.c.content_type).join(
            payloads, payloads.c.envelope == envelopes.c.id
        )
        wanted = wanted.where(DEAD, *([envelopes.c.job == job] if job is not None else []))
        if tenant is not None:
            wanted = wanted.where(envelopes.c.job.in_(select(jobs.c.id).where(jobs.c.tenant == tenant)))
        wanted = wanted.order_by(envelopes.c.finished_at.desc(), envelopes.c.id).limit(limit)
        with self._database.read() as connection:
            letters = {row["id"]: dict(row) for row in connection.execute(wanted).mappings()}
            failures: dict[str, list[Result]] = {id_: [] for id_ in letters}
            for failure in _failures(connection, letters):
                failures[failure.envelope].append(failure)
        return [_letter(row, failures[id_]) for id_, row in letters.items()]

    def replay(
        self,
        *,
        job: str | None = None,
        error_kind: str | None = None,
        failed_before: float | None = None,
        limit: int = 1000,
        by: Actor | None = None,
    ) -> Replayed:
        """Put up to `limit` envelopes with failed results back into the outbox, filtered by job and kind of error.

        The failed results are deleted and no longer counted. Other results of these envelopes stay as they are,
        although they are computed again. The reconciler publishes the envelopes in its next round, and their attempts
        count from 0. Envelopes that could only fail in another way are skipped: dropped inputs, a passed deadline, a
        cancelled job.

        To replay everything, call again until nothing is replayed, with the same `failed_before` (default: now, see
        `Store.now`), so that items which fail again in the meantime do not repeat forever. Pass `by` to the first call
        only, or the audit log has an entry for each.
        """
        failed = [FAILED, results.c.stored_at <= (clock() if failed_before is None else failed_before)]
        if job is not None:
            failed.append(results.c.job == job)
        if error_kind is not None:
            failed.append(results.c.error["kind"].as_string() == error_kind)
        with self._database.write(Weight.ACCEPTED) as connection:
            done = _replay(connection, and_(*failed), limit)
            if done.envelopes:
                note(connection, by, "replay", "jobs" if job is None else f"job:{job}", error=error_kind)
            return done


def _letter(row: dict[str, Any], failures: Sequence[Result]) -> DeadLetter:
    own = {name: row[name] for name in DeadLetter.__slots__ if name not in ("state", "failures")}
    return DeadLetter(**own, state=EnvelopeState(row["state"]), failures=tuple(failures))


def _failures(connection: Connection, ids: Collection[str]) -> list[Result]:
    owners = select(envelopes.c.job).where(among(connection, envelopes.c.id, ids))
    wanted = select(results).where(FAILED, results.c.job.in_(owners), among(connection, results.c.envelope, ids))
    ordered = wanted.order_by(results.c.job, results.c.seq, results.c.task)
    return [result_in(row) for row in connection.execute(ordered).mappings()]


def _replay(connection: Connection, failed: ColumnElement[bool], limit: int) -> Replayed:
    """Delete failed results and put their envelopes back into the outbox, immediately overdue.

    Nothing else is missing, so the next attempt computes only these, of an envelope that may have a thousand.
    """
    chosen = _lock_replayable(connection, failed, limit)
    deleted = _delete(connection, failed, chosen)
    if deleted:
        connection.execute(
            update(envelopes)
            .where(envelopes.c.id == bindparam("_id"))
            .values(
                state="accepted",
                accepted_at=0,
                published_at=None,
                attempts=0,
                worker=None,
                leased_until=None,
                lease_s=None,
                finished_at=None,
                error=None,
                stored=envelopes.c.stored - bindparam("_deleted"),
                deaths=0,
                suspect=None,
                tries=0,
                due_at=None,
                paused_by=None,
                waits=bindparam("_waits", type_=Text),
            ),
            [
                {"_id": envelope, "_deleted": len(own), "_waits": postponing.waits(own)}
                for (_, envelope), own in deleted.items()
            ],
        )
    counts = Counter({owner: len(own) for owner, own in deleted.items()})
    _uncount(connection, counts)
    return Replayed(envelopes=len(counts), results=counts.total())


def _lock_replayable(connection: Connection, failed: ColumnElement[bool], limit: int) -> dict[str, str]:
    """Lock finished envelopes that have a failed result and can be computed again; return their jobs by envelope."""
    of_failed = select(results.c.envelope).where(failed)
    in_time = or_(envelopes.c.deadline_at.is_(None), envelopes.c.deadline_at > clock())
    wanted = (
        select(envelopes.c.id, envelopes.c.job)
        .join(jobs, jobs.c.id == envelopes.c.job)
        .join(payloads, payloads.c.envelope == envelopes.c.id)
        .where(FINISHED, in_time, jobs.c.cancelled_at.is_(None), envelopes.c.id.in_(of_failed))
        .order_by(envelopes.c.id)
        .limit(limit)
        .with_for_update(of=envelopes, key_share=True)
    )
    return {row.id: row.job for row in connection.execute(wanted)}


def _delete(
    connection: Connection, failed: ColumnElement[bool], chosen: dict[str, str]
) -> dict[tuple[str, str], list[PostponedResult]]:
    """Delete the failed results of `chosen`; return them by job and envelope."""
    of_chosen = (
        among(connection, results.c.job, set(chosen.values())),
        among(connection, results.c.envelope, chosen),
    )
    named = (results.c.job, results.c.envelope, results.c.seq, results.c.task)
    deleted: dict[tuple[str, str], list[PostponedResult]] = {}
    for job, envelope, seq, task in connection.execute(delete(results).where(failed, *of_chosen).returning(*named)):
        deleted.setdefault((job, envelope), []).append(PostponedResult(seq, task, 0, 0.0, None))
    return deleted


def _uncount(connection: Connection, deleted: Counter[tuple[str, str]]) -> None:
    by_job: Counter[str] = Counter()
    for (job, _), count in deleted.items():
        by_job[job] += count
    for job, count in sorted(by_job.items()):
        connection.execute(update(jobs).where(jobs.c.id == job).values(failed=jobs.c.failed - count, finished_at=None))
        again = {"next_at": 0.0, "attempts": 0}  # its new end is told, too
        connection.execute(update(webhooks).where(webhooks.c.job == job).values(again))
