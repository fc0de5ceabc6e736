"""The envelopes that a node holds: run once, leased, dropped if cancelled, returned if interrupted."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from producers.wire.messages import Envelope, Priority
from results_store.errors import StoreError
from results_store.records import ResultState
from results_store.store import Store
from workers.batching.batcher import Batcher
from workers.batching.planning.work_seconds import Amount
from workers.batching.work import Group
from workers.envelope.gate import EnvelopeInterrupted

logger = logging.getLogger(__name__)

#: A node that holds so many envelopes has work for its device, whatever part of the host they are in. A large one
#: counts as several, of `USUAL_ROWS`.
CROWD = 4
USUAL_ROWS = 64

#: The share of the latest envelope in the work of a usual envelope.
LATEST = 0.1


@dataclass(slots=True, eq=False)
class HeldEnvelope:
    """An envelope that runs here. `group` are its items at the batcher, and `envelope` has them; None before that.

    Only an envelope that `may_return` can be given back. It was `returned` so many times before.
    """

    id: str
    job: str
    returned: int = 0
    model: str = ""
    priority: int = 0
    group: Group | None = None
    may_return: bool = False
    counts_as: float = 1.0
    envelope: Envelope | None = None

    @property
    def amount(self) -> Amount:
        """The work of all its items; none before they are at the batcher."""
        return _work(self.group, left=False)

    @property
    def left(self) -> Amount:
        """The work of the items without an outcome."""
        return _work(self.group, left=True)


class HeldEnvelopes:
    """The held envelopes. Thread-safe. `worker` is the name of the lease holder, `lease_s` the length of a lease."""

    def __init__(self, store: Store, *, worker: str, lease_s: float) -> None:
        self._store = store
        self._worker = worker
        self._lease_s = lease_s
        self._held: dict[str, HeldEnvelope] = {}
        #: The work of a usual envelope, which is not urgent, by model.
        self.usual: dict[str, Amount] = {}
        self._crowded: tuple[float, float | None] = (0.0, None)  # seconds, and the time since which they grow
        self._idle = threading.Condition()

    @contextmanager
    def taking(
        self, envelope: str, job: str, *, returned: int = 0, urgent: bool = False
    ) -> Iterator[HeldEnvelope | None]:
        """Hold an envelope while it runs. Yields None if it already runs here; the caller must then not run it."""
        rows = 0.0 if urgent else max((usual.rows for usual in self.usual.copy().values()), default=0.0)
        held = HeldEnvelope(envelope, job, returned, counts_as=max(1.0, rows / USUAL_ROWS))
        with self._idle:
            taken = envelope not in self._held
            if taken:
                self._held[envelope] = held
                self._note_crowd()
        if not taken:
            # kombu redelivers running envelopes when it reconnects; a single run is enough
            yield None
            return
        try:
            yield held
        except EnvelopeInterrupted:
            # before its message is back in the queue: the next worker that takes it must find the lease released
            self._release(envelope)
            raise
        except Exception as error:
            self._note_failure(envelope, error)
            raise
        finally:
            with self._idle:
                self._held.pop(envelope, None)
                self._note_crowd()
                self._idle.notify_all()

    def submitted(self, held: HeldEnvelope, envelope: Envelope, group: Group, may_return: bool) -> None:
        """Note that an envelope's items are at the batcher."""
        urgent = envelope.priority is Priority.INTERACTIVE
        held.model, held.priority = envelope.model, int(envelope.priority)
        held.envelope = envelope
        held.may_return = may_return
        held.group = group
        if not urgent:
            known, amount = self.usual.get(held.model), held.amount
            self.usual[held.model] = known.towards(amount, LATEST) if known else amount

    def now(self) -> list[HeldEnvelope]:
        """Return the held envelopes, in the order in which they came."""
        return list(self._held.copy().values())

    def crowded_s(self) -> float:
        """Return the seconds since the start in which `CROWD` envelopes were held, or large ones that count as many."""
        seconds, since = self._crowded
        return seconds if since is None else seconds + time.monotonic() - since

    def _note_crowd(self) -> None:
        crowded = sum(held.counts_as for held in self._held.values()) >= CROWD
        if crowded != (self._crowded[1] is not None):
            self._crowded = (self.crowded_s(), time.monotonic() if crowded else None)

    def give_back(self, held: HeldEnvelope, batcher: Batcher, *, begun: bool = True) -> None:
        """Let an envelope return to its queue at once: its device may be slow, or may have stalled.

        Its computed results are stored, its lease is given up, and the attempt does not count. Unless `begun` items
        return, too, the envelope waits for their batches.
        """
        assert held.group is not None, "it is at the batcher"
        held.may_return = False
        batcher.give_back(held.group, begun=begun)

    def wait_until_none(self, timeout_s: float) -> None:
        """Wait until no envelope is held, or until the timeout."""
        with self._idle:
            self._idle.wait_for(lambda: not self._held, timeout=timeout_s)

    def renew_leases(self) -> None:
        self._lease(self._lease_s)

    def give_up_leases(self) -> None:
        """Let all leases run out now. The envelopes are overdue at once, and this counts as a death of their worker."""
        self._lease(0.0)

    def _lease(self, seconds: float) -> None:
        held = list(self._held.copy())  # without the lock: of a process that ends, any thread may hold it
        if held:
            self._store.renew(held, worker=self._worker, lease_s=seconds)

    def drop_cancelled(self, batcher: Batcher) -> None:
        """Make the batcher drop newly cancelled jobs, and cancelled items among those computed in steps."""
        with self._idle:
            jobs = {held.job for held in self._held.values()}
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

    def _release(self, envelope: str) -> None:
        try:
            self._store.release([envelope], worker=self._worker)
        except StoreError as unavailable:
            # its lease expires instead, and a reconciler publishes it again
            logger.warning("envelope %s: its lease could not be released: %s", envelope, unavailable)

    def _note_failure(self, envelope: str, error: Exception) -> None:
        detail = {"kind": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()}
        try:
            self._store.note_failure(envelope, worker=self._worker, error=detail)
        except StoreError as unavailable:
            # its lease expires instead, and the next attempt comes a little later
            logger.warning("envelope %s: its failure could not be recorded: %s", envelope, unavailable)


def _work(group: Group | None, *, left: bool) -> Amount:
    entries = list(group.entries) if group else ()  # the batcher's thread may cut blocks meanwhile
    wanted = [entry.waiting for entry in entries if not (left and entry.outcome)]
    return Amount(sum(one.cost for one in wanted), sum(one.rows for one in wanted), sum(one.heads for one in wanted))
