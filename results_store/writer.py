"""The group committer: one thread that stores what many threads have, a transaction at a time.

While one transaction runs, whatever arrives waits together for the next. So a lone result is stored at once, and
under load the groups grow by themselves; nothing waits for a timer.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from results_store.errors import StoreError, StoreUnavailable
from results_store.records import MAX_ATTEMPTS, Batch, Claim, Committed, NewEnvelope, Result, Transaction
from results_store.sql.pipelines import Follow
from results_store.store import Store

logger = logging.getLogger(__name__)

Done = tuple[str, str]

#: What was committed: the (job, envelope) pairs that are done, and by envelope the few results of those without a row in
#: the outbox, if all of what was to be stored was new.
OnCommitted = Callable[[Sequence[Done], Mapping[str, Sequence[Result]]], None]

#: An envelope with more results than this has them read from the store.
FEW_RESULTS = 8


@dataclass(slots=True, eq=False)
class _Request:
    """One caller's part of a transaction, and its outcome."""

    part: Transaction
    claims: Mapping[str, Claim] = field(default_factory=dict)
    error: BaseException | None = None
    settled: threading.Event = field(default_factory=threading.Event)


class Writer:
    """Commits and claims for the threads of one worker, grouped.

    `commit` and `claim` block until their own part is stored. When the database is away, the writer keeps
    what it holds and tries again until it is back or `close` gives up; the callers go on waiting, so nothing
    is acknowledged before it is stored. An envelope begun `max_attempts` times is claimed as dead; `drop_inputs`
    deletes inputs once their results are stored without a failure, for privacy, and gives up replaying them. Each thread waits for its own request, so what can queue up here is
    bounded by the number of threads. What `follow` says of the results of pipelines is accepted with them, and given to
    `on_followed` to be published; if that fails, the reconciler publishes it.
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
        max_group_results: int = 8192,
        first_retry_s: float = 0.1,
        last_retry_s: float = 5.0,
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
        self._queue: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._batches: deque[Batch] = deque()
        self._thread = threading.Thread(target=self._run, name="argosy-writer", daemon=True)
        self._turn = threading.Lock()  # held by whoever talks to the database
        self._called = False  # the thread has taken a request and waits for its turn
        self._entrance = threading.Lock()  # nobody comes in once `close` has put its end mark behind the others
        self._running = False
        self._give_up = threading.Event()
        self._unavailable_since: float | None = None

    # --- for the worker's threads ---

    def start(self) -> Self:
        """Start the thread. A writer runs once; make a new one after `close`."""
        self._thread.start()
        self._running = True
        return self

    def commit(self, part: Transaction) -> None:
        """Return once the results are stored, the envelopes in `done` and `dead` finished, the batches recorded.

        Worker, lease and attempts are the writer's own. Raises InvalidRow if this call's own rows cannot be stored,
        StoreUnavailable if `close` gave up.
        """
        self._settle(_Request(part))

    def claim(self, envelope: str) -> Claim:
        """Return what to do with an envelope, which is leased to this worker for `lease_s` if it is to be done."""
        return self._settle(_Request(Transaction(claims=(envelope,)))).claims[envelope]

    def record(self, batch: Batch) -> None:
        """Have a batch recorded along with the next group, or by `close`, without waiting for it.

        It asks for no transaction of its own: its results are about to. After `close` it is dropped.
        """
        with self._entrance:
            if self._running:
                self._batches.append(batch)

    @property
    def unavailable_since(self) -> float | None:
        """When the database went away (Unix seconds), or None while it answers: no new work should be taken then."""
        return self._unavailable_since

    @property
    def waiting(self) -> int:
        """How many requests wait for the next transaction."""
        return self._queue.qsize() + self._called

    def close(self, timeout_s: float = 10.0) -> None:
        """Store what is waiting, for at most `timeout_s`; what is then left fails with StoreUnavailable."""
        with self._entrance:
            if self._running:
                self._queue.put(None)
            self._running = False
        if self._thread.ident is None:  # never started
            return
        self._thread.join(timeout_s)
        self._give_up.set()
        self._thread.join()
        with self._turn:  # whoever stores their own have stored it, or given up
            pass

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _settle(self, request: _Request) -> _Request:
        with self._entrance:
            if not self._running:
                raise StoreError("the writer is not running; start it, or a new one after close()")
            # a lone one is stored by its own thread, which spares it being passed to another and back
            alone = not self._called and self._queue.empty() and self._turn.acquire(blocking=False)
            if not alone:
                self._queue.put(request)
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

    def _run(self) -> None:
        while (request := self._queue.get()) is not None:
            self._called = True
            with self._turn:
                self._called = False
                self._store_group(self._with_batches(self._with_others(request)))
        with self._turn:
            if rest := self._with_batches([]):
                self._store_group(rest)

    def _with_batches(self, group: list[_Request]) -> list[_Request]:
        """Add the batches recorded so far, in front: no result is stored before its batch."""
        recorded = [self._batches.popleft() for _ in range(len(self._batches))]
        return [_Request(Transaction(batches=recorded)), *group] if recorded else group

    def _with_others(self, request: _Request) -> list[_Request]:
        """Return a request and all that wait behind it, up to the limit."""
        group = [request]
        waiting = len(request.part.results)
        while waiting < self._max_group_results:
            try:
                other = self._queue.get_nowait()
            except queue.Empty:
                break
            if other is None:
                self._queue.put(None)  # met again after this group
                break
            group.append(other)
            waiting += len(other.part.results)
        return group

    def _store_group(self, group: list[_Request]) -> None:
        try:
            at, committed = self._persist(group)
        except Exception as error:  # noqa: BLE001 - whatever it is, somebody waits to hear of it
            self._refuse(group, error)
            return
        self._publish(committed)
        self._announce(group, at, committed)
        for request in group:
            request.settled.set()

    def _refuse(self, group: list[_Request], error: Exception) -> None:
        """Fail a request that cannot be stored; of several, find out which one it is, and spare the others."""
        if len(group) == 1 or isinstance(error, StoreUnavailable):
            for request in group:
                request.error = error
                request.settled.set()
            return
        middle = len(group) // 2
        self._store_group(group[:middle])
        self._store_group(group[middle:])

    def _persist(self, group: list[_Request]) -> tuple[float, Committed]:
        """Store the group, however long the database is away; return when that was.

        Raises StoreUnavailable only after `close` gave up.
        """
        delay_s = self._first_retry_s
        while True:
            at = time.time()
            try:
                committed = self._transact(group, at)
            except StoreUnavailable as error:
                if self._unavailable_since is None:
                    self._unavailable_since = time.time()
                    logger.warning("keeping %d requests and trying again: %s", len(group), error)
                if self._give_up.wait(delay_s):
                    raise
                delay_s = min(delay_s * 2, self._last_retry_s)
            else:
                if self._unavailable_since is not None:
                    logger.warning("the database is back after %.0f s", time.time() - self._unavailable_since)
                    self._unavailable_since = None
                return at, committed

    def _transact(self, group: list[_Request], now: float) -> Committed:
        parts = [request.part for request in group]
        whole = Transaction(
            results=[result for part in parts for result in part.results],
            done=[id_ for part in parts for id_ in part.done],
            dead=[id_ for part in parts for id_ in part.dead],
            batches=[batch for part in parts for batch in part.batches],
            unlisted=frozenset(id_ for part in parts for id_ in part.unlisted),
            stepped=frozenset(id_ for part in parts for id_ in part.stepped),
            claims=[id_ for part in parts for id_ in part.claims],
            worker=self._worker,
            leased_until=now + self._lease_s,
            max_attempts=self._max_attempts,
            drop_inputs=self._drop_inputs,
            at=now,
        )
        committed = self._store.transact(whole, self._follow)
        for request in group:
            request.claims = committed.claims
        return committed

    def _publish(self, committed: Committed) -> None:
        if self._on_followed is None or not committed.followed:
            return
        try:
            self._on_followed(committed.followed)
        except Exception as error:  # noqa: BLE001 - they are accepted, and the reconciler publishes what is overdue
            logger.warning("%d envelopes wait for the reconciler to publish them: %s", len(committed.followed), error)

    def _announce(self, group: list[_Request], at: float, committed: Committed) -> None:
        """Tell of what is done. A notice that is lost costs its reader one poll; a commit must not fail for it."""
        if self._on_committed is None or not committed.done:
            return
        try:
            self._on_committed(committed.done, _few(group, at, committed))
        except Exception as error:  # noqa: BLE001 - see above
            logger.warning("notices of %d envelopes were not sent: %s", len(committed.done), error)


def _few(group: list[_Request], at: float, committed: Committed) -> dict[str, list[Result]]:
    """Return the results of the group's envelopes that have no row in the outbox and few results, as they are stored.

    Nothing if any of the group's was there before: the row that is stored is then another one.
    """
    parts = [request.part for request in group]
    if sum(len(part.results) for part in parts) != committed.inserted:
        return {}
    few = [part for part in parts if part.unlisted and 0 < len(part.results) <= FEW_RESULTS]
    return {part.results[0].envelope: [replace(result, stored_at=at) for result in part.results] for part in few}
