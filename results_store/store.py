"""The store: the operations of producers and workers on jobs, envelopes and results, a method each.

Other tables have their own objects, which are attributes of `Store`: `tenants`, `pauses`, `schedules`, `flight` (the
micro-batches), `figures` (for metrics), `dead_letters`, `retention`, `cached_results`, `declarations` (of models), the
gateway's `keys`, `files`, `file_batches` and `webhooks`, a site's `edge`, and the `audit` log. A method that an
operator causes takes `by`, the `Actor` for the audit log.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from results_store.edge.edge_spool import EdgeSpool
from results_store.gateway.api_keys import ApiKeys
from results_store.gateway.gateway_batches import GatewayBatches
from results_store.gateway.gateway_files import GatewayFiles
from results_store.gateway.webhooks import Webhooks
from results_store.records import (
    MAX_ATTEMPTS,
    Backlog,
    Batch,
    Claimed,
    Committed,
    Depth,
    FailureCount,
    FoundJob,
    JobFilter,
    JobStatus,
    Line,
    NewEnvelope,
    NewJob,
    PendingEnvelope,
    Result,
    RetriedWork,
    Transaction,
)
from results_store.sql import delivery, driver_statements, reading, submission
from results_store.sql.auditing.audit_log import Actor, AuditLog, note
from results_store.sql.caching.cached_results import CachedResults
from results_store.sql.chunks import stored_results
from results_store.sql.database import Database, Weight, open_current
from results_store.sql.dead_letters import DeadLetters
from results_store.sql.declarations import Declarations
from results_store.sql.flight import FlightRecorder
from results_store.sql.monitoring.fleet_figures import FleetFigures
from results_store.sql.pipelines import Follow
from results_store.sql.retention import Retention
from results_store.sql.tenants import Tenants
from results_store.sql.waiting import priorities
from results_store.sql.waiting.pauses import Pauses
from results_store.sql.waiting.schedules import Schedules


class Store:
    """A database of jobs, envelopes, results and batches: SQLite or PostgreSQL.

    Any number of threads may share a Store, and any number of processes a database. `timeout_s` limits every wait: for
    a connection, a lock or a statement. Every method except `close` raises StoreUnavailable if the database cannot be
    reached in that time; the same call may then be repeated.

    Its clock judges all times that machines share, such as leases: PostgreSQL's, or with SQLite its machine's. A time
    given as `now` or `at` replaces it.
    """

    def __init__(self, url: str, *, timeout_s: float = 30.0) -> None:
        self._database = Database(url, timeout_s=timeout_s)
        self.keys = ApiKeys(self._database)
        self.files = GatewayFiles(self._database)
        self.file_batches = GatewayBatches(self._database)
        self.webhooks = Webhooks(self._database)
        self.declarations = Declarations(self._database)
        self.tenants = Tenants(self._database)
        self.pauses = Pauses(self._database)
        self.schedules = Schedules(self._database)
        self.flight = FlightRecorder(self._database)
        self.figures = FleetFigures(self._database)
        self.dead_letters = DeadLetters(self._database)
        self.retention = Retention(self._database)
        self.cached_results = CachedResults(self._database)
        self.edge = EdgeSpool(self._database)
        self.audit = AuditLog(self._database)

    def __repr__(self) -> str:
        return f"Store({str(self._database)!r})"

    # --- life ---

    def open(self) -> Self:
        """Connect and check the schema. Raises SchemaMismatch, which names the command to run."""
        open_current(self._database)
        return self

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def migrate(self, *, chunks: bool = False) -> None:
        """Create the schema or upgrade it. Needs no `open`; safe from several processes at once.

        With `chunks`, versions that cannot read results in chunks are refused from now on. None of their processes may
        run: see docs/upgrading.md.
        """
        from results_store.migrations.run import upgrade  # Alembic: with argosy[worker] only

        upgrade(self._database, chunks=chunks)

    @property
    def sqlite(self) -> bool:
        return self._database.sqlite

    @property
    def stores_chunks(self) -> bool:
        """Whether workers may store results in chunks, because the database refuses versions that cannot read them.

        A database that this version has created refuses them. Another does so from `migrate(chunks=True)` on, for
        stores that are opened afterwards.
        """
        return self._database.chunked

    def is_pooled(self) -> bool:
        """Return whether a pooler, such as PgBouncer, is between this process and PostgreSQL."""
        return self._database.is_pooled()

    # --- producers ---

    def create_job(self, job: NewJob) -> JobStatus:
        """Create the job, or return the existing job with its id or its idempotency key."""
        return self.find_or_create_job(job).status

    def find_job(self, job: NewJob) -> FoundJob | None:
        """Return the existing job with this job's id or idempotency key, with the marks of its submission, or None."""
        with self._database.read() as connection:
            return submission.find_job(connection, job)

    def find_or_create_job(self, job: NewJob) -> FoundJob:
        """Create the job or return the existing one, like `create_job`, with the marks of its submission."""
        with self._database.write(Weight.ACCEPTED) as connection:
            return submission.create_job(connection, job)

    def add_envelopes(
        self,
        envelopes: Sequence[NewEnvelope],
        *,
        jobs: Sequence[NewJob] = (),
        expected_items: int | None = None,
        fingerprint: str | None = None,
    ) -> float | None:
        """Put envelopes into the outbox, all or none, and count them in their jobs.

        They are accepted once this returns. Returns the time by the store's clock, or None without envelopes.

        `jobs` are created in the same transaction, which saves a lone item a wait for the disk. With `expected_items`,
        each job must hold exactly that many items before: this protects a submission that continues an interrupted run.
        `fingerprint` is then kept with the job, for the next run.
        Raises UnknownJob, or SubmissionConflict, also if another job has the idempotency key of one of `jobs`.
        """
        with self._database.write(Weight.ACCEPTED) as connection:
            return submission.add_envelopes(connection, envelopes, jobs, expected_items, fingerprint)

    def mark_published(self, ids: Collection[str], at: float | None = None) -> None:
        """Record that envelopes are in Redis, so that the reconciler leaves them alone."""
        with self._database.write(Weight.NOTE) as connection:
            delivery.mark_published(connection, ids, at)

    def cancel_job(self, job: str, at: float | None = None, *, by: Actor | None = None) -> JobStatus:
        """Cancel the uncomputed items: claims of their envelopes return CANCELLED from now on. Raises UnknownJob."""
        with self._database.write(Weight.ACCEPTED) as connection:
            return submission.cancel_job(connection, job, at, by)

    def cancel_item(
        self,
        rows: Sequence[Result],
        *,
        alone: Collection[str] = (),
        unlisted: Collection[str] = (),
        by: Actor | None = None,
    ) -> int:
        """Store `cancelled` rows of one item, where it has no result; return their number. Raises InvalidRow.

        Envelopes in `alone` hold nothing else, and end. Envelopes in `unlisted` were never in the outbox.
        """
        with self._database.write(Weight.ACCEPTED) as connection:
            transaction = Transaction(results=rows, done=alone, unlisted=unlisted)
            cancelled = delivery.transact(connection, transaction).inserted
            if cancelled:
                note(connection, by, "cancel", f"job:{rows[0].job}", item=rows[0].seq)
            return cancelled

    def prioritize_job(self, job: str, priority: int, *, by: Actor | None = None) -> int:
        """Move a job's envelopes that no worker holds to another priority, in portions; return their number.

        Raises UnknownJob, or TooManyChanges soon after another change.
        """
        return priorities.prioritize(self._database, job, priority, by)

    # --- reading ---

    def now(self) -> float:
        """Return the time by the store's clock (Unix seconds), by which times of several machines are compared."""
        with self._database.read() as connection:
            return driver_statements.store_time(connection)

    def job(self, job: str) -> JobStatus:
        """Return a job with its progress, which is a single row whatever the job's size. Raises UnknownJob."""
        with self._database.read() as connection:
            return reading.job(connection, job)

    def job_id(self, prefix: str) -> str:
        """Return the id of the only job whose id begins with `prefix`, of 4 or more characters. Raises UnknownJob."""
        with self._database.read() as connection:
            return reading.job_id(connection, prefix)

    def jobs(
        self,
        *,
        limit: int = 20,
        before: tuple[float, str] | None = None,
        tenant: str | None = None,
        text: str = "",
        having: JobFilter | None = None,
    ) -> list[JobStatus]:
        """Return jobs, newest first. `before` is the (created_at, id) of the last job on the page before.

        `tenant` limits them to a tenant's jobs, `text` to jobs with this text in their name, tenant or id, and `having`
        to unfinished jobs or to jobs with results in a state.
        """
        with self._database.read() as connection:
            return reading.newest_jobs(connection, limit, before, tenant, text, having)

    def cancelled_among(self, jobs: Collection[str]) -> set[str]:
        """Return the cancelled jobs among these. Workers then drop the waiting items of these jobs."""
        with self._database.read() as connection:
            return reading.cancelled_among(connection, jobs)

    def results(self, job: str, *, after: tuple[int, str] | None = None, limit: int = 1000) -> list[Result]:
        """Return a page of a job's results in (seq, task) order. `after` is the last key of the page before.

        While the job runs, results may appear behind the reader's position.
        """
        with self._asking() as ask:
            return stored_results.page_of_results(ask, job, after, limit)

    def spread(self, job: str, block: int) -> dict[int, int]:
        """Return the number of results in each block of `block` items, by block number. Empty blocks are left out."""
        with self._database.read() as connection:
            return stored_results.spread_of_results(connection, job, block)

    def results_of(self, job: str, seqs: Collection[int]) -> list[Result]:
        """Return the stored results of these items of a job, in (seq, task) order."""
        with self._asking() as ask:
            return stored_results.results_of(ask, job, seqs)

    @contextmanager
    def _asking(self) -> Iterator[stored_results.Ask]:
        if self._database.sqlite:
            with self._database.cursor() as cursor:
                yield stored_results.asking_lite(cursor)
        else:
            with self._database.read() as connection:
                yield stored_results.asking(connection)

    def inputs(self, envelopes: Collection[str]) -> dict[str, tuple[bytes, str]]:
        """Return the payloads of these envelopes, as (bytes, content type). Deleted payloads are left out."""
        with self._database.read() as connection:
            return reading.inputs(connection, envelopes)

    def depth(self) -> list[Depth]:
        """Return the unfinished work by model, priority and state."""
        with self._database.read() as connection:
            return reading.depth(connection)

    def running_alone(self) -> tuple[int, str | None]:
        """Return the number of unfinished envelopes that run alone after deaths of workers, and one of their jobs."""
        with self._database.read() as connection:
            return reading.running_alone(connection)

    def backlog(self) -> list[Backlog]:
        """Return the held and the waiting envelopes, by model and priority."""
        with self._database.read() as connection:
            return reading.backlog(connection)

    def unowed(self, *, older_than_s: float) -> list[str]:
        """Return the unfinished jobs, of that age, of which no envelope is unfinished: they would never finish."""
        with self._database.read() as connection:
            return reading.unowed(connection, older_than_s)

    def given_up(self) -> tuple[int, float | None]:
        """Return the number of dead letters, and the time of the last."""
        with self._database.read() as connection:
            return reading.given_up(connection)

    def recent_failures(self, *, limit: int = 20, job: str | None = None, tenant: str | None = None) -> list[Result]:
        """Return the newest failed results: of all jobs, or of a job or tenant."""
        with self._database.read() as connection:
            return reading.recent_failures(connection, limit, job, tenant)

    def count_failures(self, *, job: str | None = None) -> list[FailureCount]:
        """Return the number of failed results by task and kind of error, the most frequent first."""
        with self._database.read() as connection:
            return reading.count_failures(connection, job)

    def retried_work(self, job: str | None = None) -> RetriedWork | None:
        """Return the work that waits to be tried again, of a job or of all, or None if there is none."""
        with self._database.read() as connection:
            return reading.retried_work(connection, job)

    def unfinished_models(self, job: str) -> list[str]:
        """Return the models that have envelopes of a job to compute."""
        with self._database.read() as connection:
            return reading.unfinished_models(connection, job)

    # --- workers ---

    def claim(
        self,
        ids: Collection[str],
        *,
        worker: str,
        lease_s: float,
        now: float | None = None,
        max_attempts: int = MAX_ATTEMPTS,
    ) -> dict[str, Claimed]:
        """Return the claim of each envelope. A worker's own envelopes are leased to it and count an attempt."""
        lease = Transaction(claims=ids, worker=worker, lease_s=lease_s, at=now, max_attempts=max_attempts)
        return dict(self.transact(lease).claims)

    def commit(
        self,
        results: Sequence[Result],
        *,
        done: Collection[str] = (),
        dead: Collection[str] = (),
        batches: Sequence[Batch] = (),
        drop_inputs: bool = False,
        unlisted: Collection[str] = (),
        at: float | None = None,
    ) -> Committed:
        """Store results and finish envelopes, like a `Transaction` with these fields. Raises InvalidRow."""
        return self.transact(
            Transaction(
                results=results,
                done=done,
                dead=dead,
                batches=batches,
                drop_inputs=drop_inputs,
                unlisted=unlisted,
                at=at,
            )
        )

    def transact(
        self, transaction: Transaction, follow: Follow | None = None, *, tried_again: bool = False
    ) -> Committed:
        """Run a worker's transaction. Raises InvalidRow.

        The envelopes that `follow` derives from a pipeline's new results are put into the outbox with them.
        `tried_again` is that of `Database.write`.
        """
        stores = transaction.results or transaction.chunks or transaction.done or transaction.dead
        with self._database.write(Weight.RESULTS if stores else Weight.NOTE, tried_again=tried_again) as connection:
            return delivery.transact(connection, transaction, follow)

    def renew(self, ids: Collection[str], *, worker: str, lease_s: float, now: float | None = None) -> int:
        """Renew the worker's leases on envelopes, for `lease_s` from now; return the number that it still has."""
        with self._database.write(Weight.NOTE) as connection:
            return delivery.renew(connection, ids, worker=worker, lease_s=lease_s, now=now)

    def release(self, ids: Collection[str], *, worker: str) -> int:
        """Give envelopes back uncomputed, when an operator stops a worker. The lease ends; the attempt is not
        counted.
        """
        with self._database.write(Weight.NOTE) as connection:
            return delivery.release(connection, ids, worker=worker)

    def note_failure(self, envelope: str, *, worker: str, error: dict[str, Any]) -> bool:
        """Store the error that ended the worker's attempt, and end its lease. Return whether it still had a lease.

        For errors of the attempt, not of the items: the envelope is overdue at once, and is attempted again unless it
        has used all its attempts.
        """
        with self._database.write(Weight.NOTE) as connection:
            return delivery.note_failure(connection, envelope, worker=worker, error=error) > 0

    def note_suspect(self, envelope: str, suspect: int) -> int:
        """Store the item (its `seq`, or ALL_ITEMS) with which the envelope runs alone next.

        Return the number of starts with this suspect in a row, including this one. Starts after which the worker
        released the envelope or noted a failure do not count.
        """
        with self._database.write(Weight.NOTE) as connection:
            return delivery.note_suspect(connection, envelope, suspect)

    # --- the reconciler ---

    def take_overdue(
        self,
        *,
        overdue_s: float,
        oldest: Mapping[Line, float | None] | None = None,
        served: Collection[str] = (),
        limit: int = 1000,
        now: float | None = None,
    ) -> list[PendingEnvelope]:
        """Take envelopes that were accepted `overdue_s` ago and not published, or whose lease has expired.

        A lease has also expired if it ends later than a lease that begins now: its worker's clock was wrong.

        `oldest` has the time at which the oldest message of a model, priority and lane was pushed, or None for an empty
        list. Also taken are the envelopes of these lists that were published `overdue_s` before it and never claimed,
        because Redis has lost them. The envelopes of cancelled jobs that wait for their time or for the end of a pause
        are taken at once. If the models that live workers serve are given, those that wait for other models are taken
        as well. All return to the outbox as accepted now, so that no other reconciler takes them. Publish them, then
        call `mark_published`.
        """
        with self._database.read() as connection:
            found = delivery.overdue(
                connection, overdue_s=overdue_s, oldest=oldest or {}, served=served, limit=limit, now=now
            )
        if not found.ids:
            return []
        with self._database.write(Weight.NOTE) as connection:
            return delivery.take_overdue(connection, found)
