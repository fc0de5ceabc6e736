"""Publish envelopes again that are missing in Redis, after any failure: the outbox pattern.

Every node runs a reconciler. No leader is needed: the store hands each overdue envelope to a single reconciler, and an
extra copy costs only a look into the store, because a worker's claim recognises envelopes that are held or done.
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

#: Envelopes per round.
LIMIT = 256


class Reconciler:
    """Publishes overdue envelopes: accepted but never published, with an expired lease, or lost by Redis."""

    def __init__(self, store: Store, publisher: Publisher, models: Sequence[str], *, overdue_s: float) -> None:
        self._store = store
        self._publisher = publisher
        self._models = models
        self._overdue_s = overdue_s
        self._looked_at = -math.inf  # monotonic

    def run(self) -> int:
        """Publish the overdue envelopes and return their number.

        Raises BrokerUnavailable, Overloaded or StoreUnavailable.
        """
        self._publisher.check_writes()  # take no envelope that cannot be published
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
        """Return for each list the time before which all published, unclaimed envelopes are gone from Redis.

        A list is first in, first out: an envelope pushed before the oldest message was taken or is lost. A list whose
        oldest message has no time is left out until that message is gone. `overdue_s` is an allowance for current
        claims and for clocks that differ. The look reads whole messages, so not every run does it.
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
        """Return every Redis list for envelopes of these models. A tenant has its lane before it has envelopes."""
        lanes = sorted({tenant.lane for tenant in self._store.tenants.every()})
        return [(model, priority, lane) for model in self._models for priority in Priority for lane in lanes]


class _Properties(msgspec.Struct):
    delivery_tag: str


class _Pushed(msgspec.Struct):
    properties: _Properties


def _pushed_at(data: bytes) -> float | None:
    """Return the time a message was pushed, from its delivery tag; None for a message of another program."""
    try:
        return made_at(msgspec.json.decode(data, type=_Pushed).properties.delivery_tag)
    except ValueError:  # msgspec's errors are ValueErrors too
        return None
