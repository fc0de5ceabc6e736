"""Publishing again what should be in Redis and is not: the outbox's way out after anything died.

Every node runs one. No leader is needed: the store hands each overdue envelope to one reconciler only, and a copy too
many costs a look into the store, since a worker's claim recognises what is held or done.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence

import msgspec

from producers.wire.messages import Priority, made_at
from producers.wire.publisher import Publisher, as_unavailable, message
from producers.wire.queues import redis_key
from results_store.records import Line
from results_store.store import Store

logger = logging.getLogger(__name__)

#: Envelopes taken in one go.
LIMIT = 256


class Reconciler:
    """`run` publishes what is overdue by `overdue_s`: accepted and never published, its worker's lease run out, or lost by Redis."""

    def __init__(self, store: Store, publisher: Publisher, models: Sequence[str], *, overdue_s: float) -> None:
        self._store = store
        self._publisher = publisher
        self._models = models
        self._overdue_s = overdue_s
        self._looked_at = -math.inf  # monotonic

    def run(self) -> int:
        """Publish what is overdue and return how many envelopes that was. Raises BrokerUnavailable, StoreUnavailable."""
        self._publisher.check()  # take nothing that cannot be published
        gone_before = self._gone_before()
        total = 0
        while published := self._publish_overdue(gone_before):
            total += published
        if total:
            logger.info("published %d overdue envelopes again", total)
        return total

    def _publish_overdue(self, gone_before: Mapping[Line, float]) -> int:
        now = time.time()
        overdue = self._store.take_overdue(
            now, accepted_before=now - self._overdue_s, published_before=gone_before, limit=LIMIT
        )
        if overdue:
            self._publisher.publish([message(envelope, about="published again") for envelope in overdue])
            self._store.mark_published([envelope.id for envelope in overdue], time.time())
        return len(overdue)

    def _gone_before(self) -> dict[Line, float]:
        """Return for each line from before when what is published and not claimed is no longer in Redis.

        A list is first in, first out: what was pushed before its oldest message was taken from it or is lost. One whose
        oldest message does not say when it was pushed is left out, until that is gone. `overdue_s` is the allowance
        for claims under way and for clocks that differ. It costs a look at whole messages, so not every run does it.
        """
        if time.monotonic() - self._looked_at < self._overdue_s / 2:
            return {}
        self._looked_at = time.monotonic()
        redis = self._publisher.redis
        lines = self._lines()
        with as_unavailable(redis), redis.pipeline(transaction=False) as pipeline:
            for model, priority, lane in lines:
                pipeline.lindex(redis_key(model, priority, lane), -1)
            oldest: list[bytes | None] = pipeline.execute()
        now = time.time()
        pushed_at = {line: now if data is None else _pushed_at(data) for line, data in zip(lines, oldest, strict=True)}
        return {line: at - self._overdue_s for line, at in pushed_at.items() if at is not None}

    def _lines(self) -> list[tuple[str, Priority, int]]:
        """Every list of Redis that can hold an envelope of these models: a tenant has its lane before it has envelopes."""
        lanes = sorted({tenant.lane for tenant in self._store.tenants.every()})
        return [(model, priority, lane) for model in self._models for priority in Priority for lane in lanes]


class _Properties(msgspec.Struct):
    delivery_tag: str


class _Pushed(msgspec.Struct):
    properties: _Properties


def _pushed_at(data: bytes) -> float | None:
    """Return when a message was pushed, which its delivery tag says if it is one of ours."""
    try:
        return made_at(msgspec.json.decode(data, type=_Pushed).properties.delivery_tag)
    except ValueError:  # msgspec's errors are ValueErrors, too
        return None
