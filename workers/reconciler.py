"""Publishing again what should be in Redis and is not: the outbox's way out after anything died.

Every node runs one. No leader is needed: the store hands each overdue envelope to one reconciler only, and a copy too
many costs a look into the store, since a worker's claim recognises what is held or done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from producers.messages import Priority
from producers.publisher import Publisher, as_unavailable, message
from producers.queues import redis_key
from results_store.store import Store

logger = logging.getLogger(__name__)

#: Envelopes taken in one go.
LIMIT = 256


class Reconciler:
    """`run` publishes what is overdue by `overdue_s`: accepted and never published, or its worker's lease run out."""

    def __init__(self, store: Store, publisher: Publisher, models: Sequence[str], *, overdue_s: float) -> None:
        self._store = store
        self._publisher = publisher
        self._keys = [redis_key(model, priority) for model in models for priority in Priority]
        self._overdue_s = overdue_s

    def run(self) -> int:
        """Publish what is overdue and return how many envelopes that was. Raises BrokerUnavailable, StoreUnavailable."""
        total = 0
        while published := self._run_once():
            total += published
        if total:
            logger.info("published %d overdue envelopes again", total)
        return total

    def _run_once(self) -> int:
        now = time.time()
        before = now - self._overdue_s
        self._publisher.check()  # take nothing that cannot be published
        overdue = self._store.take_overdue(
            now,
            accepted_before=before,
            # with empty queues, what was published long ago and claimed by nobody is no longer anywhere in Redis
            published_before=before if self._queues_are_empty() else None,
            limit=LIMIT,
        )
        if overdue:
            self._publisher.publish([message(envelope, about="published again") for envelope in overdue])
            self._store.mark_published([envelope.id for envelope in overdue], time.time())
        return len(overdue)

    def _queues_are_empty(self) -> bool:
        redis = self._publisher.redis
        with as_unavailable(redis), redis.pipeline(transaction=False) as pipeline:
            for key in self._keys:
                pipeline.llen(key)
            return not any(pipeline.execute())
