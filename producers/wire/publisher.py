"""Envelopes onto Redis, as the messages that Celery itself would put there, built without Celery.

`message` is pure: the client, an asyncio client and the reconciler share it. `Publisher` is the sync edge.

The message is kombu's virtual message with a Celery task of protocol 2 in it. It names the default exchange and the
queue as routing key, which kombu resolves without a binding; so it can be published before any worker ever
started, and a worker that gives it back finds its way to the same list.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from producers.wire.connection import masked
from producers.wire.errors import BrokerUnavailable, ConfigurationError, Overloaded
from producers.wire.messages import JSON, MSGPACK, Priority, new_id
from producers.wire.queues import TASK, queue_name, redis_key

if TYPE_CHECKING:
    from redis import Redis

#: The list to push to, and the bytes to push.
Message = tuple[str, bytes]

#: The body is ``[args, kwargs, embed]``; these stand before and after the one argument, the encoded envelope.
_FRAMES = {
    JSON: (b"[[", b'], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'),
    MSGPACK: (
        b"\x93\x91",
        b"\x80" + msgspec.msgpack.encode({"callbacks": None, "errbacks": None, "chain": None, "chord": None}),
    ),
}
_CONTENT_ENCODINGS = {JSON: "utf-8", MSGPACK: "binary"}

#: Seconds a socket may take to connect, and a command to be answered, before the broker counts as unreachable.
TIMEOUT_S = 5.0
SUBSCRIBE_TIMEOUT_S = 1.0


class Publishable(Protocol):
    """What `message` needs of an envelope: results_store's NewEnvelope and PendingEnvelope both have it."""

    @property
    def id(self) -> str: ...
    @property
    def job(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def priority(self) -> int: ...
    @property
    def lane(self) -> int: ...
    @property
    def payload(self) -> bytes: ...
    @property
    def content_type(self) -> str: ...


def message(envelope: Publishable, *, about: str = "") -> Message:
    """Return where an envelope goes and the message to push there.

    `about` (``64 items, sentiment+topic``) is what Flower shows of it besides its model, priority and job. The
    inputs themselves are never part of what is shown.
    """
    before, after = _FRAMES[envelope.content_type]
    priority = Priority(envelope.priority)
    parts = [about] if about else []
    shown = f"{envelope.model}: {', '.join([*parts, priority.name.lower(), f'job {envelope.job}'])}"
    wire = {
        "body": before + envelope.payload + after,  # msgspec writes bytes as base64, which is what is wanted here
        "content-encoding": _CONTENT_ENCODINGS[envelope.content_type],
        "content-type": envelope.content_type,
        "headers": _headers(envelope.id, repr((shown,))),
        "properties": {
            "correlation_id": envelope.id,
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue_name(envelope.model, envelope.lane)},
            "priority": int(priority),
            "body_encoding": "base64",
            "delivery_tag": new_id(),  # not the envelope's: it may be published twice, and each copy is acknowledged
        },
    }
    return redis_key(envelope.model, priority, envelope.lane), msgspec.json.encode(wire)


def _headers(task_id: str, argsrepr: str) -> dict[str, Any]:
    return {
        "lang": "py",
        "task": TASK,
        "id": task_id,
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": task_id,
        "parent_id": None,
        "argsrepr": argsrepr,
        "kwargsrepr": "{}",
        "origin": _origin(),
        "ignore_result": True,  # the result goes to the store; Celery's result backend has no part in it
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
    }


@cache
def _origin() -> str:
    return f"argosy@{socket.gethostname()}"


class Publisher:
    """Pushes messages in one pipeline. Thread-safe; connects when first used."""

    def __init__(self, broker_url: str) -> None:
        self._broker_url = broker_url
        self._redis: Redis | None = None
        self._lock = threading.Lock()
        self._doubtful = True

    @property
    def redis(self) -> Redis:
        """The Redis client, for subscriptions. Creating it connects nothing yet."""
        with self._lock:
            if self._redis is None:
                self._redis = connect(self._broker_url)
            return self._redis

    def subscriber(self) -> Redis:
        """Return a Redis client of its own for subscriptions; whoever listens looks elsewhere soon, so it is less patient."""
        return connect(self._broker_url, timeout_s=min(TIMEOUT_S, SUBSCRIBE_TIMEOUT_S))

    def check(self) -> None:
        """Make sure that Redis answers, before anything is accepted for it; free while publishing works.

        Raises BrokerUnavailable.
        """
        if self._doubtful:
            with as_unavailable(self.redis):
                self.redis.ping()
            self._doubtful = False

    def publish(self, messages: Sequence[Message]) -> None:
        """Push all messages in one round trip. Raises BrokerUnavailable or Overloaded; some may then have been pushed."""
        redis = self.redis
        try:
            if len(messages) == 1:  # a lone interactive item: no pipeline to set up
                with as_unavailable(redis):
                    redis.lpush(*messages[0])
                return
            with as_unavailable(redis), redis.pipeline(transaction=False) as pipeline:
                for key, data in messages:
                    pipeline.lpush(key, data)
                pipeline.execute()
        except (BrokerUnavailable, Overloaded):
            self._doubtful = True
            raise

    def close(self) -> None:
        """Close the connections. The publisher can be used again, and then connects anew."""
        with self._lock:
            client, self._redis = self._redis, None
            self._doubtful = True
        if client is not None:
            client.close()


def connect(broker_url: str, *, timeout_s: float | None = None) -> Redis:
    """Return a Redis client with bounded waits (default: TIMEOUT_S). Nothing is connected yet. Raises ConfigurationError."""
    from redis import Redis
    from redis.backoff import ExponentialBackoff
    from redis.exceptions import ConnectionError as NotConnected
    from redis.retry import Retry

    timeout_s = TIMEOUT_S if timeout_s is None else timeout_s
    try:
        return Redis.from_url(
            broker_url,
            socket_connect_timeout=timeout_s,
            socket_timeout=timeout_s,
            health_check_interval=30,
            # enough for a connection that a restarted server dropped; one that is down is reported, not waited for
            retry=Retry(ExponentialBackoff(cap=0.2, base=0.05), 2, supported_errors=(NotConnected,)),
        )
    except ValueError as error:
        raise ConfigurationError(f"broker: {masked(broker_url)!r} is no Redis URL: {error}") from None


@contextmanager
def as_unavailable(redis: Redis) -> Iterator[None]:
    """Turn redis-py's errors into BrokerUnavailable, or Overloaded where its memory is full; they name the address."""
    from redis.exceptions import AuthenticationError, OutOfMemoryError, RedisError

    try:
        yield
    except AuthenticationError as error:
        raise BrokerUnavailable(f"{_where(redis)} refuses the login: {error}; check user and password") from error
    except OutOfMemoryError as error:
        raise Overloaded(
            f"{_where(redis)} is full: {error}; wait for the fleet to catch up, or give it memory"
        ) from error
    except (RedisError, OSError) as error:
        raise BrokerUnavailable(f"{_where(redis)}: {error}; check that it runs and can be reached") from error


def _where(redis: Redis) -> str:
    settings = redis.get_connection_kwargs()
    return f"Redis at {settings.get('host')}:{settings.get('port')}"
