"""What stands in for a worker where only the client is tested: it reads the real broker and commits to the real
store.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from redis import Redis

from producers.wire.messages import REFERENCE, Envelope, Priority, decode, decode_bytes
from producers.wire.queues import done_channel, redis_key
from results_store.records import Claim, Result, ResultState
from results_store.sql.columns import pack_vector
from results_store.store import Store

FAILS = "fails"


class StandIn:
    """Takes envelopes off Redis and commits a result for each item and task; an input `fails` fails."""

    def __init__(self, broker_url: str, store: Store) -> None:
        self._broker_url = broker_url
        self._store = store

    def waiting(self) -> list[Envelope]:
        """Return the envelopes on Redis, the most urgent first, leaving them there."""
        with Redis.from_url(self._broker_url) as redis:
            return [self._read(data) for key in _keys() for data in reversed(list_of(redis, key))]

    def work(self, envelopes: int) -> None:
        """Take this many envelopes, waiting for each, and commit, notify."""
        with Redis.from_url(self._broker_url) as redis:
            for _ in range(envelopes):
                self._work_one(redis)

    def work_off(self, items: int) -> int:
        """Take envelopes until they held this many items; return how many envelopes that were."""
        envelopes = 0
        with Redis.from_url(self._broker_url) as redis:
            while items > 0:
                items -= len(self._work_one(redis).items)
                envelopes += 1
        return envelopes

    def _work_one(self, redis: Redis) -> Envelope:
        popped: Any = redis.brpop(_keys(), timeout=60)
        envelope = self._read(popped[1])
        self.commit(envelope)
        redis.publish(done_channel(envelope.job), envelope.id)
        return envelope

    def _read(self, data: bytes) -> Envelope:
        """Return the envelope of a message on Redis: the stored one, if the message only names it."""
        (raw,), _, _ = json.loads(base64.b64decode(json.loads(data)["body"]))
        if raw["version"] == REFERENCE:
            raw = decode_bytes(*self._store.inputs([raw["id"]])[raw["id"]])
        envelope, bad = decode(raw)
        assert not bad
        return envelope

    def commit(self, envelope: Envelope) -> None:
        claim = Claim.UNKNOWN
        if envelope.durable:
            claim = self._store.claim([envelope.id], worker="stand-in", lease_s=60)[envelope.id].verdict
        if claim is Claim.DONE:
            return
        state = ResultState.CANCELLED if claim is Claim.CANCELLED else ResultState.SUCCEEDED
        rows = [
            _result(envelope, item.seq, task, item.input, item.key, state)
            for item in envelope.items
            for task in item.tasks
        ]
        self._store.commit(rows, done=[envelope.id], unlisted=() if envelope.durable else [envelope.id])


def _result(envelope: Envelope, seq: int, task: str, value: object, key: str | None, state: ResultState) -> Result:
    failed = value == FAILS and state is ResultState.SUCCEEDED
    succeeded = state is ResultState.SUCCEEDED and not failed
    return Result(
        job=envelope.job,
        seq=seq,
        task=task,
        envelope=envelope.id,
        key=key,
        state=ResultState.FAILED if failed else state,
        output=[{"label": f"{task} of {value}", "score": 0.5}] if succeeded and task != "embedding" else None,
        vector=pack_vector([0.5, -1.25]) if succeeded and task == "embedding" else None,
        error={"kind": "InvalidInput", "message": "input: is not to its liking"} if failed else None,
    )


def list_of(redis: Redis, key: str) -> list[bytes]:
    values: Any = redis.lrange(key, 0, -1)
    return list(values)


def _keys() -> list[str]:
    return [redis_key("text", priority, lane) for priority in Priority for lane in range(4)]
