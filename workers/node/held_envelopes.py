"""The envelopes that a node holds: run once, leased, dropped if cancelled, returned if interrupted."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from results_store.errors import StoreError
from results_store.records import ResultState
from results_store.store import Store
from workers.batching.batcher import Batcher
from workers.envelope.gate import EnvelopeInterrupted

logger = logging.getLogger(__name__)


class HeldEnvelopes:
    """The held envelopes. Thread-safe. `worker` is the name of the lease holder, `lease_s` the length of a lease."""

    def __init__(self, store: Store, *, worker: str, lease_s: float) -> None:
        self._store = store
        self._worker = worker
        self._lease_s = lease_s
        self._jobs: dict[str, str] = {}  # envelope: job
        self._idle = threading.Condition()

    @contextmanager
    def taking(self, envelope: str, job: str) -> Iterator[bool]:
        """Hold an envelope while it runs. Yields False if it already runs here; the caller must then not run it."""
        with self._idle:
            taken = envelope not in self._jobs
            if taken:
                self._jobs[envelope] = job
        if not taken:
            # kombu redelivers running envelopes when it reconnects; a single run is enough
            yield False
            return
        try:
            yield True
        except EnvelopeInterrupted:
            # before its message is back in the queue: the next worker that takes it must find the lease released
            self._store.release([envelope], worker=self._worker)
            raise
        except Exception as error:
            self._note_failure(envelope, error)
            raise
        finally:
            with self._idle:
                self._jobs.pop(envelope, None)
                self._idle.notify_all()

    def wait_until_none(self, timeout_s: float) -> None:
        """Wait until no envelope is held, or until the timeout."""
        with self._idle:
            self._idle.wait_for(lambda: not self._jobs, timeout=timeout_s)

    def renew_leases(self) -> None:
        self._lease(self._lease_s)

    def give_up_leases(self) -> None:
        """Let all leases run out now. The envelopes are overdue at once, and this counts as a death of their worker."""
        self._lease(0.0)

    def _lease(self, seconds: float) -> None:
        held = list(self._jobs.copy())  # without the lock: of a process that ends, any thread may hold it
        if held:
            self._store.renew(held, worker=self._worker, lease_s=seconds)

    def drop_cancelled(self, batcher: Batcher) -> None:
        """Make the batcher drop newly cancelled jobs, and cancelled items among those computed in steps."""
        with self._idle:
            jobs = set(self._jobs.values())
        if jobs and (cancelled := self._store.cancelled_among(jobs)):
            batcher.cancel(cancelled)
        self._drop_cancelled_items(batcher)

    def _drop_cancelled_items(self, batcher: Batcher) -> None:
        """Drop cancelled items that are computed in steps: these run long, so each can be cancelled by itself."""
        by_job: dict[str, list[int]] = {}
        for job, seq in batcher.stepping:
            by_job.setdefault(job, []).append(seq)
        gone = [
            (row.job, row.seq)
            for job, seqs in by_job.items()
            for row in self._store.results_of(job, seqs)
            if row.state is ResultState.CANCELLED
        ]
        if gone:
            batcher.cancel(items=gone)

    def _note_failure(self, envelope: str, error: Exception) -> None:
        detail = {"kind": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()}
        try:
            self._store.note_failure(envelope, worker=self._worker, error=detail)
        except StoreError as unavailable:
            # its lease expires instead, and the next attempt comes a little later
            logger.warning("envelope %s: its failure could not be recorded: %s", envelope, unavailable)
