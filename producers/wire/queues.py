"""Queue names, priorities and transport settings that producers and workers share."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from producers.wire.messages import Priority

if TYPE_CHECKING:
    from redis import Redis

#: The Celery task that runs an envelope. Flower shows this name.
TASK = "argosy.envelope"

#: Redis keeps a list per priority. kombu polls them in this order across all of a worker's queues.
PRIORITY_STEPS = sorted(int(priority) for priority in Priority)

#: kombu's separator between a queue's name and its priority in the Redis key.
PRIORITY_SEPARATOR = "\x06\x16"


def queue_name(model: str, lane: int = 0) -> str:
    """Return the queue of a model's envelopes in a lane: a Redis list per priority.

    Tenants have lanes of their own, so that they take turns. Lane 0 is for submissions without a tenant.
    """
    return f"argosy.{model}/{lane}" if lane else f"argosy.{model}"


def redis_key(model: str, priority: Priority, lane: int = 0) -> str:
    """Return the Redis list of a model's envelopes of a priority and lane, by kombu's name.

    kombu adds no suffix for priority 0 (``kombu.transport.redis.Channel._q_for_pri``).
    """
    queue = queue_name(model, lane)
    return f"{queue}{PRIORITY_SEPARATOR}{int(priority)}" if priority else queue


def waiting_messages(redis: Redis) -> dict[str, int]:
    """Return the lists in which messages of envelopes wait, each with its length. Raises RedisError."""
    keys = {key.decode() for key in redis.scan_iter(match="argosy.*", count=1000, _type="list")} - {REFUSED}
    with redis.pipeline(transaction=False) as pipeline:
        for key in sorted(keys):
            pipeline.llen(key)
        return dict(zip(sorted(keys), pipeline.execute(), strict=True))


def queue_of(key: str) -> str:
    """Return the queue to which a Redis list belongs."""
    return key.partition(PRIORITY_SEPARATOR)[0]


def done_channel(job: str) -> str:
    """Return the pub/sub channel that announces a job's finished envelopes, after their commit."""
    return f"argosy.done.{job}"


def text_channel(job: str, seq: int) -> str:
    """Return the pub/sub channel that carries the text of an item piece by piece, while the model writes it."""
    return f"argosy.text.{job}.{seq}"


#: The Redis list of the newest refused messages, newest first; the most that it holds, and the seconds it is kept.
REFUSED = "argosy.refused"
MOST_REFUSED = 1000
REFUSED_KEPT_S = 7 * 86400


class RefusedMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message that a worker acknowledged and did not run, with the cause. Of its content only the digest is kept.

    `at` is Unix time. `task` and `id` are empty if they could not be read.
    """

    at: float
    queue: str
    cause: str
    sha256: str
    bytes: int
    task: str = ""
    id: str = ""


def note_refused(redis: Redis, message: RefusedMessage) -> None:
    """Add a message to the list. Raises RedisError."""
    with redis.pipeline(transaction=False) as pipeline:
        pipeline.lpush(REFUSED, msgspec.json.encode(message))
        pipeline.ltrim(REFUSED, 0, MOST_REFUSED - 1)
        pipeline.expire(REFUSED, REFUSED_KEPT_S)
        pipeline.execute()


def refused_messages(redis: Redis, limit: int = MOST_REFUSED) -> list[RefusedMessage]:
    """Return the newest refused messages. Raises RedisError."""
    listed: Any = redis.lrange(REFUSED, 0, limit - 1)
    found = []
    for noted in listed:
        with suppress(ValueError):  # anybody who reaches Redis can write to the list
            found.append(msgspec.json.decode(noted, type=RefusedMessage))
    return found
