"""Queue names, priorities and transport settings that producers and workers share."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from producers.wire.messages import UNREADABLE, Priority

if TYPE_CHECKING:
    from redis import Redis

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: The Celery task that runs an envelope. Flower shows this name.
TASK = "argosy.envelope"

#: Redis keeps a list per priority. kombu polls them in this order across all of a worker's queues.
PRIORITY_STEPS = sorted(int(priority) for priority in Priority)

#: kombu's separator between a queue's name and its priority in the Redis key.
PRIORITY_SEPARATOR = "\x06\x16"

#: The ends of the names of lists to which other applications may send: kombu's priorities, of which an application's
#: `priority_steps` are a choice, after kombu's separator or that of Celery's documentation. Priority 0 has no end.
PRIORITY_ENDS = [
    (priority, f"{separator}{priority}") for priority in range(1, 10) for separator in (PRIORITY_SEPARATOR, ":")
]
_END = re.compile(rf"{PRIORITY_SEPARATOR}\d+$|:\d$")


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
    return _END.sub("", key)


def model_of(queue: str) -> str:
    """Return the model of a queue's envelopes."""
    return queue.removeprefix("argosy.").partition("/")[0]


#: The Redis hash in which nodes say how much work they hold.
LOADS = "argosy.loads"


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
    """A message that a worker acknowledged and did not run, with the cause and the digest of its content.

    `at` is Unix time. `task` and `id` are empty if they could not be read.
    """

    at: float
    queue: str
    cause: str
    sha256: str
    bytes: int
    task: str = ""
    id: str = ""


def note_refused(redis: Redis, *messages: RefusedMessage) -> None:
    """Add messages to the list. Raises RedisError."""
    with redis.pipeline(transaction=False) as pipeline:
        pipeline.lpush(REFUSED, *map(msgspec.json.encode, messages))
        pipeline.ltrim(REFUSED, 0, MOST_REFUSED - 1)
        pipeline.expire(REFUSED, REFUSED_KEPT_S)
        pipeline.execute()


def refused_messages(redis: Redis, limit: int = MOST_REFUSED) -> list[RefusedMessage]:
    """Return the newest refused messages. Raises RedisError."""
    listed: Any = redis.lrange(REFUSED, 0, limit - 1)
    return [message for noted in listed if (message := read(noted, RefusedMessage)) is not None]


def read(data: bytes, form: type[T]) -> T | None:
    """Return a JSON value from Redis, or None if another program wrote a value of another form."""
    try:
        return msgspec.json.decode(data, type=form)
    except UNREADABLE:
        return None


#: The beginning of the names of keys that were renamed.
ASIDE = "argosy.aside."

# KEYS and, from the third on, ARGV: keys and their types. A string must expire: the only string is a lock. Returns each
# renamed key with its type.
_PUT_ASIDE = """
local renamed = {}
for place, key in ipairs(KEYS) do
    local wanted, kind = ARGV[place + 2], redis.call('TYPE', key).ok
    if kind ~= 'none' and (kind ~= wanted or (kind == 'string' and redis.call('PTTL', key) == -1)) then
        redis.call('RENAME', key, ARGV[1] .. key)
        redis.call('EXPIRE', ARGV[1] .. key, ARGV[2])
        table.insert(renamed, {key, kind})
    end
end
return renamed
"""


def put_aside(redis: Redis, types: Mapping[str, str]) -> None:
    """Rename keys that do not have these types, so that their names can be used again; log and note each.

    Every command on a key of another type is refused, so a key that another program wrote would stop all work that
    needs its name. Raises RedisError.
    """
    types = {REFUSED: "list", **types}  # the others are noted there
    renamed = redis.eval(_PUT_ASIDE, len(types), *types, ASIDE, REFUSED_KEPT_S, *types.values())
    for name, kind in renamed:
        key = name.decode(errors="replace")
        cause = f"the key was a {kind.decode()}, made by another program; it was renamed to {ASIDE}{key}"
        logger.warning("the key %r of Redis: %s", key, cause)
        note_refused(redis, RefusedMessage(at=time.time(), queue=key, cause=cause, sha256="", bytes=0))
