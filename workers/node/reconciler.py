"""Publish envelopes again that are missing in Redis, after any failure: the outbox pattern.

Every node runs a reconciler. No leader is needed: the store hands each overdue envelope to a single reconciler, and an
extra copy costs only a look into the store, because a worker's claim recognises envelopes that are held or done.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from producers.wire.live_nodes import NODES
from producers.wire.messages import Priority, made_at
from producers.wire.publisher import Publisher, as_unavailable, message
from producers.wire.queues import LOADS, put_aside, queue_name, read, redis_key
from results_store.loops.loop import note
from results_store.records import Line
from results_store.store import Store
from workers.node.periodic_duties import RUN_LIMIT_S
from workers.node.presence import ENDED

logger = logging.getLogger(__name__)

#: Envelopes per round.
LIMIT = 256

#: The prefix of kombu's sets of the queues of an exchange. A sender of Celery adds to the set of its queue.
_BINDINGS = "_kombu.binding."

#: The type of each key of Redis that belongs to no queue of a model. All but the first three are kombu's.
_TYPES = {
    NODES: "set",
    ENDED: "zset",
    LOADS: "hash",
    "unacked": "hash",
    "unacked_index": "zset",
    "unacked_mutex": "string",
    **dict.fromkeys((_BINDINGS + name for name in ("celery.pidbox", "reply.celery.pidbox", "celeryev")), "set"),
}


class Reconciler:
    """Publishes overdue envelopes: accepted but never published, with an expired lease, or lost by Redis.

    A cancelled envelope of a model that nobody serves is published for this worker, which ends it: that needs no model.
    """

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
        self._put_aside(_TYPES)
        self._publisher.look()  # nor one that a live node cannot read
        began, oldest = time.monotonic(), self._oldest()
        total, stranded = 0, dict[str, str]()
        while published := self._publish_overdue(began, oldest, stranded):
            total += published
            note("publishing overdue envelopes", RUN_LIMIT_S)
        self._remove(stranded)
        if total:
            logger.info("published %d overdue envelopes again", total)
        return total

    def _publish_overdue(self, began: float, oldest: Mapping[Line, float | None], stranded: dict[str, str]) -> int:
        """Publish up to `LIMIT` overdue envelopes, and add the stranded ones with their lists to `stranded`."""
        # as old as at the start of the run: so a run publishes no envelope twice
        overdue_s = self._overdue_s + time.monotonic() - began
        reference = self._publisher.by_reference
        served = (self._publisher.served or frozenset()) if reference else frozenset()
        overdue = self._store.take_overdue(overdue_s=overdue_s, oldest=oldest, served=served, limit=LIMIT)
        if overdue:
            messages = {
                envelope.id: message(envelope, about="published again", reference=reference, at=envelope.accepted_at)
                for envelope in overdue
            }
            stranded |= {
                envelope.id: messages[envelope.id][0]
                for envelope in overdue
                if served and envelope.is_cancelled and envelope.model not in served
            }
            # a bulk list may take hours, and they would be published again in the meantime
            own = redis_key(self._models[0], Priority.STANDARD)
            self._publisher.publish([(own if id_ in stranded else key, data) for id_, (key, data) in messages.items()])
            self._store.mark_published([envelope.id for envelope in overdue])
        return len(overdue)

    def _remove(self, stranded: Mapping[str, str]) -> None:
        """Remove the earlier messages of these envelopes, each with its list, which nobody reads."""
        redis = self._publisher.redis
        for key in sorted(set(stranded.values())):
            place = 0
            while True:
                note("publishing overdue envelopes", RUN_LIMIT_S)
                with as_unavailable(redis):
                    found: Any = redis.lrange(key, place, place + LIMIT - 1)
                if not found:
                    break
                place += len(found)
                with as_unavailable(redis), redis.pipeline(transaction=False) as pipeline:
                    for data in found:
                        sent = read(data, _Pushed)
                        if sent and sent.properties.correlation_id in stranded:
                            pipeline.lrem(key, 1, data)
                            place -= 1
                    pipeline.execute()

    def _oldest(self) -> dict[Line, float | None]:
        """Return for each list the time at which its oldest message was pushed; None if the list is empty.

        A list is first in, first out: an unclaimed envelope that was published before this message was taken or is
        lost. A list whose oldest message has no time is left out until that message is gone. `overdue_s` is an
        allowance for current claims. The times are by the store's clock, except of messages that are not durable, or
        from older versions. The look reads whole messages, so not every run does it.
        """
        if time.monotonic() - self._looked_at < self._overdue_s / 2:
            return {}
        self._looked_at = time.monotonic()
        redis = self._publisher.redis
        lines = self._lines()
        bindings = {_BINDINGS + queue_name(model, lane) for model, _, lane in lines}
        self._put_aside({redis_key(*line): "list" for line in lines} | dict.fromkeys(bindings, "set"))
        with as_unavailable(redis), redis.pipeline(transaction=False) as pipeline:
            for line in lines:
                pipeline.lindex(redis_key(*line), -1)
            oldest: list[bytes | None] = pipeline.execute()
        found = {line: None if data is None else _pushed_at(data) for line, data in zip(lines, oldest, strict=True)}
        return {line: at for (line, at), data in zip(found.items(), oldest, strict=True) if at or data is None}

    def _put_aside(self, types: Mapping[str, str]) -> None:
        redis = self._publisher.redis
        with as_unavailable(redis):
            put_aside(redis, types)

    def _lines(self) -> list[tuple[str, Priority, int]]:
        """Return every Redis list for envelopes of these models. A tenant has its lane before it has envelopes."""
        lanes = sorted({tenant.lane for tenant in self._store.tenants.every()})
        return [(model, priority, lane) for model in self._models for priority in Priority for lane in lanes]


class _Properties(msgspec.Struct):
    delivery_tag: str
    correlation_id: str | None = None


class _Pushed(msgspec.Struct):
    properties: _Properties


def _pushed_at(data: bytes) -> float | None:
    """Return the time a message was pushed, from its delivery tag; None for a message of another program."""
    pushed = read(data, _Pushed)
    try:
        return None if pushed is None else made_at(pushed.properties.delivery_tag)
    except ValueError:
        return None
