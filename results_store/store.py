"""The store: what producers and workers do with jobs, envelopes and results, one method each.

The other things in the database have objects of their own, which it has: `tenants`, `flight` (the micro-batches), `dead_letters`,
`retention`, `declarations` (of models), and the gateway's `keys`, `files` and `file_batches`.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from results_store.gateway.api_keys import ApiKeys
from results_store.gateway.gateway_batches import GatewayBatches
from results_store.gateway.gateway_files import GatewayFiles
from results_store.records import (
    MAX_ATTEMPTS,
    Batch,
    Claim,
    Committed,
    Depth,
    JobStatus,
    Line,
    NewEnvelope,
    NewJob,
    PendingEnvelope,
    Result,
    Transaction,
)
from results_store.sql import delivery, reading, submission
from results_store.sql.database import Database, Weight, open_current
from results_store.sql.dead_letters import DeadLetters
from results_store.sql.declarations import Declarations
from results_store.sql.flight import FlightRecorder
from results_store.sql.pipelines import Follow
from results_store.sql.retention import Retention
from results_store.sql.tenants import Tenants


class Store:
    """A database of jobs, envelopes, results and batches: SQLite or PostgreSQL.

    Any number of threads may share one Store, and any number of processes one database. `timeout_s` bounds
    every wait: for a connection, for a lock, for a statement. Every method but `close` raises StoreUnavailable
    when the database cannot be reached in that time, and may then be repeated as it is.
    """

    def __init__(self, url: str, *, timeout_s: float = 30.0) -> None:
        self._database = Database(url, timeout_s=timeout_s)
        self.keys = ApiKeys(self._database)
        self.files = GatewayFiles(self._database)
        self.file_batches = GatewayBatches(self._database)
        self.declarations = Declarations(self._database)
        self.tenants = Tenants(self._database)
        self.flight = FlightRecorder(self._database)
        self.dead_letters = DeadLetters(self._database)
        self.retention = Retention(self._database)

    def __repr__(self) -> str:
        return f"Store({str(self._database)!r})"

    # --- life ---

    def open(self) -> Self:
        """Connect and check the schema. Raises SchemaMismatch, naming the command that helps."""
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

    def migrate(self) -> None:
        """Create the schema or bring it up to date. Needs no `open`; safe from several processes at once."""
        from results_store.migrations.run import upgrade  # Alembic: with argosy[worker] only

        upgrade(self._database)

    # --- producers ---

    def create_job(self, job: NewJob) -> JobStatus:
        """Create the job, or return the one that already has its id or its idempotency key."""
        with self._database.write(Weight.ACCEPTED) as connection:
            return submission.create_job(connection, job)

    def add_envelopes(
        self,
        envelopes: Sequence[NewEnvelope],
        *,
        jobs: Sequence[NewJob] = (),
        expected_items: int | None = None,
    ) -> None:
        """Put envelopes into the outbox, all or none, and count them in their jobs. Accepted means: once this returns.

        `jobs` are created in the same transaction, which saves a lone item one wait for the disk. With
        `expected_items`, each job must hold exactly that many items before: the guard of a submission that
        goes on where an earlier one broke off. Raises UnknownJob, SubmissionConflict.
        """
        with self._database.write(Weight.ACCEPTED) as connection:
            submission.add_envelopes(connection, envelopes, jobs, expected_items)

    def mark_published(self, ids: Collection[str], at: float) -> None:
        """Note that envelopes are in Redis, so that the reconciler leaves them alone."""
        with self._database.write(Weight.NOTE) as connection:
            delivery.mark_published(connection, ids, at)

    def cancel_job(self, job: str, at: float) -> JobStatus:
        """Cancel what is not computed yet: claims of its envelopes say so from now on. Raises UnknownJob."""
        with self._database.write(Weight.ACCEPTED) as connection:
            return submission.cancel_job(connection, job, at)

    # --- reading ---

    def job(self, job: str) -> JobStatus:
        """Return a job with its progress: one row, whatever its size. Raises UnknownJob."""
        with self._database.read() as connection:
            return reading.job(connection, job)

    def jobs(
        self, *, limit: int = 20, before: tuple[float, str] | None = None, tenant: str | None = None
    ) -> list[JobStatus]:
        """Return jobs, newest first; `before` is the (created_at, id) of the last one of the page before.

        With `tenant`, only its own.
        """
        with self._database.read() as connection:
            return reading.newest_jobs(connection, limit, before, tenant)

    def cancelled_among(self, jobs: Collection[str]) -> set[str]:
        """Return which of these jobs are cancelled, for workers to drop what waits of them."""
        with self._database.read() as connection:
            return reading.cancelled_among(connection, jobs)

    def results(self, job: str, *, after: tuple[int, str] | None = None, limit: int = 1000) -> list[Result]:
        """Return a page of a job's results in (seq, task) order; `after` is the last key of the page before.

        While the job runs, results appear behind a reader that has passed their place.
        """
        with self._database.read() as connection:
            return reading.page_of_results(connection, job, after, limit)

    def spread(self, job: str, block: int) -> dict[int, int]:
        """Return how many results each block of `block` items holds, by its number; blocks without any are left out."""
        with self._database.read() as connection:
            return reading.spread_of_results(connection, job, block)

    def results_of(self, job: str, seqs: Collection[int]) -> list[Result]:
        """Return what there is of these items of a job, in (seq, task) order."""
        if self._database.sqlite:
            with self._database.cursor() as cursor:
                return reading.results_of_lite(cursor, job, seqs)
        with self._database.read() as connection:
            return reading.results_of(connection, job, seqs)

    def inputs(self, envelopes: Collection[str]) -> dict[str, tuple[bytes, str]]:
        """Return the payloads, as (bytes, content type), of those of these envelopes whose inputs are kept."""
        with self._database.read() as connection:
            return reading.inputs(connection, envelopes)

    def depth(self) -> list[Depth]:
        """Return how much unfinished work there is, by model, priority and state."""
        with self._database.read() as connection:
            return reading.depth(connection)

    def recent_failures(self, *, limit: int = 20, job: str | None = None, tenant: str | None = None) -> list[Result]:
        """Return the newest failed results: of everybody, of a job, of a tenant."""
        with self._database.read() as connection:
            return reading.recent_failures(connection, limit, job, tenant)

    # --- workers ---

    def claim(
        self,
        ids: Collection[str],
        *,
        worker: str,
        leased_until: float,
        now: float | None = None,
        max_attempts: int = MAX_ATTEMPTS,
    ) -> dict[str, Claim]:
        """Return what to do with each envelope. What becomes the worker's is leased and counts one attempt."""
        lease = Transaction(claims=ids, worker=worker, leased_until=leased_until, at=now, max_attempts=max_attempts)
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
        """Store results and finish envelopes, as a `Transaction` says. Raises InvalidRow."""
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

    def transact(self, transaction: Transaction, follow: Follow | None = None) -> Committed:
        """Carry out a worker's transaction. Raises InvalidRow.

        The envelopes that `follow` makes of a pipeline's new results go into the outbox with them.
        """
        stores = transaction.results or transaction.done or transaction.dead
        with self._database.write(Weight.RESULTS if stores else Weight.NOTE) as connection:
            return delivery.transact(
                connection, transaction, time.time() if transaction.at is None else transaction.at, follow
            )

    def renew(self, ids: Collection[str], *, worker: str, leased_until: float) -> int:
        """Prolong the worker's leases on envelopes; return how many it still has."""
        with self._database.write(Weight.NOTE) as connection:
            return delivery.renew(connection, ids, worker=worker, leased_until=leased_until)

    def release(self, ids: Collection[str], *, worker: str) -> int:
        """Give envelopes back uncomputed, for an operator's stop: lease gone, attempt not counted."""
        with self._database.write(Weight.NOTE) as connection:
            return delivery.release(connection, ids, worker=worker)

    def note_failure(self, envelope: str, *, worker: str, error: dict[str, Any], at: float | None = None) -> bool:
        """Keep the error that ended the worker's attempt, and end its lease; return whether it still had one.

        For what ends the attempt and not the items: the envelope is overdue at once, and is attempted again
        unless it has been too often.
        """
        with self._database.write(Weight.NOTE) as connection:
            now = time.time() if at is None else at
            return delivery.note_failure(connection, envelope, worker=worker, error=error, at=now) > 0

    # --- the reconciler ---

    def take_overdue(
        self,
        now: float,
        *,
        accepted_before: float,
        published_before: Mapping[Line, float] | float | None = None,
        limit: int = 1000,
    ) -> list[PendingEnvelope]:
        """Take envelopes that were accepted long ago and not published, or whose lease ran out.

        With `published_before` (a time, or one for each model, priority and lane), also those published before then and
        never claimed, which Redis no longer has. They are put back into the outbox as accepted `now`, so no other reconciler takes them;
        publish them, then call `mark_published`.
        """
        with self._database.write(Weight.NOTE) as connection:
            return delivery.take_overdue(
                connection, now, accepted_before=accepted_before, published_before=published_before, limit=limit
            )
