"""The group committer: a thread that stores the results of many threads, a transaction at a time.

Requests that arrive during a transaction share the next one. So a lone result is stored at once, and groups grow with
the load, without a timer. Urgent requests share transactions of their own, which come before the others.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Self

from results_store.errors import StoreError, StoreUnavailable
from results_store.loops.inbox import Inbox
from results_store.loops.loop import TICK_S, Loop, doing
from results_store.records import MAX_ATTEMPTS, Batch, Claimed, Committed, NewEnvelope, Result, Transaction
from results_store.sql.pipelines import Follow
from results_store.store import Store

logger = logging.getLogger(__name__)

Done = tuple[str, str]

#: The outcome of a commit: the finished (job, envelope) pairs, and by envelope the few results of envelopes without a
#: row in the outbox, if all of their results are new.
OnCommitted = Callable[[Sequence[Done], Mapping[str, Sequence[Result]]], None]

#: The most results of a transaction: an urgent request waits for the one before it.
GROUP_RESULTS = 1024

#: A claim takes about as long as so many results.
CLAIM_RESULTS = 16

#: A result takes about as long as so many results in chunks.
RESULT_IN_CHUNKS = 16

#: The results of an envelope with more results than this are read from the store.
FEW_RESULTS = 8

#: The most seconds for which a transaction may wait: some waits of the store's `timeout_s` (30 s) one after another.
TRANSACTION_LIMIT_S = 90.0


@dataclass(slots=True, eq=False)
class _Request:
    """A caller's part of a transaction, and its outcome."""

    part: Transaction
    claims: Mapping[str, Claimed] = field(default_factory=dict)
    error: BaseException | None = None
    settled: threading.Event = field(default_factory=threading.Event)


class Writer:
    """Commit results and claim envelopes for the threads of a worker, in groups.

    `commit` and `claim` block until their own part is stored. While the database is away, the writer keeps its requests
    and tries again until the database is back or `close` gives up. The callers wait meanwhile, so nothing is
    acknowledged before it is stored. Each thread waits for its own request, so the number of threads limits the queue.

    An envelope of which `max_attempts` attempts ended with an error is claimed as dead. `drop_inputs`, for privacy,
    deletes inputs once their results are stored without a failure; they can no longer be replayed. The envelopes that
    `follow` derives from results of pipelines are accepted with the results and passed to `on_followed`, which
    publishes them. If that fails, the reconciler publishes them. Writers that share `batches` store each batch once.
    """

    def __init__(
        self,
        store: Store,
        *,
        worker: str,
        lease_s: float,
        max_attempts: int = MAX_ATTEMPTS,
        drop_inputs: bool = False,
        on_committed: OnCommitted | None = None,
        follow: Follow | None = None,
        on_followed: Callable[[Sequence[NewEnvelope]], None] | None = None,
        max_group_results: int = GROUP_RESULTS,
        first_retry_s: float = 0.1,
        last_retry_s: float = 5.0,
        name: str = "argosy-writer",
        batches: deque[Batch] | None = None,
    ) -> None:
        self._store = store
        self._worker = worker
        self._lease_s = lease_s
        self._max_attempts = max_attempts
        self._drop_inputs = drop_inputs
        self._on_committed = on_committed
        self._follow = follow
        self._on_followed = on_followed
        self._max_group_results = max_group_results
        self._first_retry_s = first_retry_s
        self._last_retry_s = last_retry_s
        self._inbox: Inbox[_Request] = Inbox()
        self._batches: deque[Batch] = deque() if batches is None else batches
        self.loop = Loop(name, self._take_turn, failed=self._failed)
        self._turn = threading.Lock()  # held while a thread uses the database
        self._entrance = threading.Lock()  # no request may follow the end mark of `close`
        self._running = False
        self._give_up = threading.Event()
        self._unavailable_since: float | None = None
        #: The transactions so far, and their seconds, with the waits for a database that was away.
        self.transactions, self.transaction_s = 0, 0.0

    # --- for the worker's threads ---

    def start(self) -> Self:
        """Start the thread. A writer runs once; make another writer after `close`."""
        self.loop.start()
        self._running = True
        return self

    def commit(self, part: Transaction) -> None:
        """Return once the results and batches are stored, and the envelopes in `done` and `dead` are finished.

        The writer sets worker, lease and attempts. Raises InvalidRow if this call's own rows cannot be stored,
        StoreUnavailable after `give_up`.
        """
        self._settle(_Request(part))

    def claim(self, envelope: str, *, urgent: bool = False, priority: int | None = None) -> Claimed:
        """Return the claim of an envelope. An envelope with work to do is leased to this worker for `lease_s`.

        `priority` is that of the message.
        """
        priorities = {} if priority is None else {envelope: priority}
        part = Transaction(claims=(envelope,), priorities=priorities, urgent=urgent)
        return self._settle(_Request(part)).claims[envelope]

    def record(self, batch: Batch) -> None:
        """Record a batch with the next group, or at `close`, without waiting.

        It starts no transaction, because its results will follow soon. After `close` it is dropped.
        """
        with self._entrance:
            if self._running:
                self._batches.append(batch)

    @property
    def unavailable_since(self) -> float | None:
        """The time at which the database went away (Unix seconds), or None while it answers.

        Meanwhile the worker should take no new work.
        """
        return self._unavailable_since

    @property
    def waiting(self) -> int:
        """The number of requests that wait for the next transaction."""
        return len(self._inbox)

    def give_up(self) -> None:
        """Wait no longer for a database that is away: its requests fail with StoreUnavailable."""
        self._give_up.set()

    def close(self, timeout_s: float = 10.0) -> None:
        """Store the waiting requests, for at most `timeout_s`. The others then fail with StoreUnavailable."""
        with self._entrance:
            self._running = False
            self._inbox.close()
        if not self.loop.started:
            return
        self.loop.join(timeout_s)
        self.give_up()
        self.loop.join()
        with self._turn:  # a thread that stores its own request has ended by then
            pass

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _settle(self, request: _Request) -> _Request:
        with self._entrance:
            if not self._running:
                raise StoreError("the writer is not running; call start(), or make a new writer after close()")
            # a lone request is stored by its own thread, which saves two changes of thread
            alone = not self._inbox and self._turn.acquire(blocking=False)
            if not alone:
                self._inbox.put(request, urgent=request.part.urgent)
        with doing("storing, which has its own progress", math.inf):
            if alone:
                try:
                    self._store_group(self._with_batches([request]))
                finally:
                    self._turn.release()
            else:
                request.settled.wait()
        if request.error is not None:
            raise request.error
        return request

    # --- the thread ---

    def _take_turn(self) -> bool:
        waiting = self._inbox.wait(TICK_S)
        with self._turn:  # also without a request: a caller that is stuck with the lock must not look like progress
            self.loop.progress.note()
            if waiting:
                group = self._inbox.take(self._max_group_results, _weight)
                self._store_group(self._with_batches(group))
                self._inbox.done()
                return True
            over = self._inbox.closed and not self._inbox
            if over and (rest := self._with_batches([])):
                self._store_group(rest)
            return not over

    def _failed(self, error: BaseException) -> None:
        """Fail the requests that were being stored: whether they are stored is uncertain."""
        for request in self._inbox.failed():
            if not request.settled.is_set():
                request.error = StoreError(f"the writer failed: {type(error).__name__}: {error}")
                request.settled.set()

    def _with_batches(self, group: list[_Request]) -> list[_Request]:
        """Add the recorded batches in front: this writer stores no result before its batch.

        A writer beside it may have taken the batch for its own transaction, which ends a moment later.
        """
        recorded: list[Batch] = []
        with suppress(IndexError):  # another writer takes the last
            while self._batches:
                recorded.append(self._batches.popleft())
        return [_Request(Transaction(batches=recorded)), *group] if recorded else group

    def _store_group(self, group: list[_Request]) -> None:
        try:
            committed = self._persist(group)
        except Exception as error:  # noqa: BLE001 - whatever it is, somebody waits to hear of it
            self._refuse(group, error)
            return
        self._publish(committed)
        self._announce(group, committed)
        for request in group:
            request.settled.set()

    def _refuse(self, group: list[_Request], error: Exception) -> None:
        """Fail a request that cannot be stored. In a group, find that request and store the others."""
        if len(group) == 1 or isinstance(error, StoreUnavailable):
            for request in group:
                request.error = error
                request.settled.set()
            return
        middle = len(group) // 2
        self._store_group(group[:middle])
        self._store_group(group[middle:])

    def _persist(self, group: list[_Request]) -> Committed:
        """Store the group, however long the database is away.

        Raises StoreUnavailable only after `give_up`.
        """
        delay_s, began = self._first_retry_s, time.monotonic()
        while True:
            self.loop.progress.note("a transaction", TRANSACTION_LIMIT_S)
            try:
                committed = self._transact(group)
            except StoreUnavailable as error:
                if self._unavailable_since is None:
                    self._unavailable_since = time.time()
                    logger.warning("the database is away; %d requests wait and are tried again: %s", len(group), error)
                self.loop.progress.note("the pause before the next try", TRANSACTION_LIMIT_S)
                if self._give_up.wait(delay_s):
                    raise
                delay_s = min(delay_s * 2, self._last_retry_s)
            else:
                if self._unavailable_since is not None:
                    logger.warning("the database is back after %.0f s", time.time() - self._unavailable_since)
                    self._unavailable_since = None
                self.loop.progress.note()
                self.transactions += 1
                self.transaction_s += time.monotonic() - began
                return committed

    def _transact(self, group: list[_Request]) -> Committed:
        parts = [request.part for request in group]
        whole = Transaction(
            results=[result for part in parts for result in part.results],
            chunks=[chunk for part in parts for chunk in part.chunks],
            done=[id_ for part in parts for id_ in part.done],
            dead=[id_ for part in parts for id_ in part.dead],
            batches=[batch for part in parts for batch in part.batches],
            unlisted=frozenset(id_ for part in parts for id_ in part.unlisted),
            stepped=frozenset(id_ for part in parts for id_ in part.stepped),
            postponed={id_: left for part in parts for id_, left in part.postponed.items()},
            cached=[result for part in parts for result in part.cached],
            claims=[id_ for part in parts for id_ in part.claims],
            priorities={id_: priority for part in parts for id_, priority in part.priorities.items()},
            worker=self._worker,
            lease_s=self._lease_s,
            max_attempts=self._max_attempts,
            drop_inputs=self._drop_inputs,
        )
        committed = self._store.transact(whole, self._follow, tried_again=True)
        for request in group:
            request.claims = committed.claims
        return committed

    def _publish(self, committed: Committed) -> None:
        if self._on_followed is None or not committed.followed:
            return
        try:
            self._on_followed(committed.followed)
        except Exception as error:  # noqa: BLE001 - they are accepted, and the reconciler publishes them
            logger.warning(
                "%d envelopes of pipelines cannot be published here; the reconciler will publish them: %s",
                len(committed.followed),
                error,
            )

    def _announce(self, group: list[_Request], committed: Committed) -> None:
        """Announce the finished envelopes. A lost notice costs its reader a poll, so no commit fails because of it."""
        if self._on_committed is None or not committed.done:
            return
        try:
            self._on_committed(committed.done, _few(group, committed))
        except Exception as error:  # noqa: BLE001 - see above
            logger.warning("the notices of %d finished envelopes were not sent: %s", len(committed.done), error)


def _weight(request: _Request) -> int:
    part = request.part
    return len(part.results) + _chunked(part) // RESULT_IN_CHUNKS + CLAIM_RESULTS * len(part.claims)


def _chunked(part: Transaction) -> int:
    """Return the number of results in the chunks of a part."""
    return sum(len(chunk.seqs) for chunk in part.chunks)


def _few(group: list[_Request], committed: Committed) -> dict[str, list[Result]]:
    """Return the few results of the group's envelopes without a row in the outbox, as they are stored.

    Empty if any result of the group was stored before, because the stored row then differs.
    """
    parts = [request.part for request in group]
    if sum(len(part.results) + _chunked(part) for part in parts) != committed.inserted:
        return {}
    few = [part for part in parts if part.unlisted and 0 < len(part.results) <= FEW_RESULTS]
    at = committed.stored_at
    return {part.results[0].envelope: [replace(result, stored_at=at) for result in part.results] for part in few}
