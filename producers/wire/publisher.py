"""Push envelopes onto Redis as the messages that Celery would put there, built without Celery.

`message` is pure; the client, the asyncio client and the reconciler share it. `Publisher` is the synchronous sender.

The message is kombu's virtual message, which holds a Celery task of protocol 2. It names the default exchange, and the
queue as its routing key; kombu resolves this without a binding. So a message can be published before any worker ever
started, and a message that a worker returns comes back to the same list.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from producers.wire.connection import masked
from producers.wire.errors import BrokerUnavailable, ConfigurationError, Overloaded
from producers.wire.live_nodes import LiveNodes
from producers.wire.messages import COLUMNAR, JSON, MSGPACK, REFERENCE, Priority, Reference, new_id
from producers.wire.queues import TASK, queue_name, redis_key
from producers.wire.sockets import KEEPALIVE, sentinel_options, sentinels, unix_socket
from producers.wire.tracing.spans import TraceContext, headers
from results_store.sql.engines.forks import at_fork

if TYPE_CHECKING:
    from redis import Redis
    from redis.connection import Connection as RedisConnection

#: The Redis list, and the bytes to push there.
Message = tuple[str, bytes]

#: The body is ``[args, kwargs, embed]``: these frames surround the only argument, the encoded envelope.
_FRAMES = {
    JSON: (b"[[", b'], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'),
    MSGPACK: (
        b"\x93\x91",
        b"\x80" + msgspec.msgpack.encode({"callbacks": None, "errbacks": None, "chain": None, "chord": None}),
    ),
}
_CONTENT_ENCODINGS = {JSON: "utf-8", MSGPACK: "binary"}

#: The header of a message whose envelope has a row in the store. Its worker's lease replaces kombu's notes about
#: unacknowledged messages.
DURABLE = "argosy_durable"

#: The remedy for each refusal of Redis, by the code of its answer.
_REMEDIES = {
    "OOM": "wait for the fleet to catch up, or give Redis more memory",
    "READONLY": "it became a replica; set the broker's URL to the primary, or promote this replica",
    "UNBLOCKED": "it became a replica; set the broker's URL to the primary, or promote this replica",
    "MISCONF": "it cannot write to its disk; free space on that disk, and read Redis's log",
    "NOPERM": "give its user all commands on all keys and channels (ACL SETUSER)",
    "LOADING": "it still reads its data; wait",
    "BUSY": "a script of another program blocks it; wait, or end the script with SCRIPT KILL",
    "WRONGTYPE": "another program wrote to a key of Argosy; a worker renames such keys, so try again",
    "NOREPLICAS": "too few of its replicas answer; check them and `min-replicas-to-write`",
}

#: Seconds for a socket to connect, and for a command to be answered, before the broker counts as unreachable.
TIMEOUT_S = 5.0
SUBSCRIBE_TIMEOUT_S = 1.0

#: A connection that was silent for longer is asked for a sign of life: before its next command, or while it listens.
HEALTH_CHECK_S = 30
SUBSCRIPTION_CHECK_S = 8


class Publishable(Protocol):
    """The attributes of an envelope that `message` reads; results_store's NewEnvelope and PendingEnvelope have them."""

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


def message(
    envelope: Publishable,
    *,
    about: str = "",
    durable: bool = True,
    reference: bool = False,
    at: float | None = None,
    traces: Sequence[TraceContext] = (),
) -> Message:
    """Return an envelope's Redis list and the message to push there: with its body, or only a reference to the store.

    A `durable` envelope has a row in the store. An envelope without a body, or in columns, is always a reference. The
    reconciler reads the time `at` from the message, by the store's clock; by default it is the sender's time now.

    Flower shows `about` (``64 items, sentiment+topic``) beside the envelope's model, priority and job. The inputs are
    never shown. `traces` are the contexts of the items' submissions.
    """
    by_name = reference or not envelope.payload or envelope.content_type == COLUMNAR
    payload, content_type = _reference(envelope) if by_name else (envelope.payload, envelope.content_type)
    before, after = _FRAMES[content_type]
    priority = Priority(envelope.priority)
    parts = [about] if about else []
    shown = f"{envelope.model}: {', '.join([*parts, priority.name.lower(), f'job {envelope.job}'])}"
    wire = {
        "body": before + payload + after,  # msgspec writes bytes as base64, as kombu expects here
        "content-encoding": _CONTENT_ENCODINGS[content_type],
        "content-type": content_type,
        "headers": _headers(envelope.id, repr((shown,)), durable=durable) | (headers(traces) if traces else {}),
        "properties": {
            "correlation_id": envelope.id,
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue_name(envelope.model, envelope.lane)},
            "priority": int(priority),
            "body_encoding": "base64",
            "delivery_tag": new_id(at),  # not the envelope's id: a message may be published twice, each is acknowledged
        },
    }
    return redis_key(envelope.model, priority, envelope.lane), msgspec.json.encode(wire)


def _reference(envelope: Publishable) -> tuple[bytes, str]:
    reference = Reference(
        id=envelope.id,
        job=envelope.job,
        model=envelope.model,
        priority=envelope.priority,
    )
    return msgspec.json.encode(reference), JSON


def _headers(task_id: str, argsrepr: str, *, durable: bool) -> dict[str, Any]:
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
        "ignore_result": True,  # the result goes to the store, not to Celery's result backend
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
        DURABLE: durable,
    }


@cache
def _origin() -> str:
    return f"argosy@{socket.gethostname()}"


class Publisher:
    """Pushes messages in a Redis pipeline. Thread-safe; connects on first use, and again in a forked child.

    `look_up`, if given, returns the URL for each new connection: a local fleet may be started again at another port.
    """

    def __init__(self, broker_url: str, look_up: Callable[[], str] | None = None) -> None:
        self._broker_url = broker_url
        self._look_up = look_up
        self._redis: Redis | None = None
        self._lock = threading.Lock()
        self._doubtful = True
        self._nodes = LiveNodes()
        at_fork("child", self._start_anew)

    def _start_anew(self) -> None:
        # redis-py neither uses nor ends a connection of another process
        self._lock, self._redis, self._doubtful, self._nodes = threading.Lock(), None, True, LiveNodes()

    @property
    def by_reference(self) -> bool:
        """Whether every live node reads references: then durable envelopes are published without their bodies.

        The knowledge is as old as the last look: of the last `publish`, but for two seconds, or of `check`.
        """
        return self._nodes.read >= REFERENCE

    @property
    def in_columns(self) -> Mapping[str, int]:
        """The most items of an envelope in columns, by model; empty unless every live node reads columns."""
        return self._nodes.in_columns

    @property
    def served(self) -> frozenset[str] | None:
        """The models that live nodes serve, as of the last look, or None if that is unknown."""
        return self._nodes.models

    @property
    def redis(self) -> Redis:
        """The Redis client, for subscriptions. Creating it opens no connection."""
        with self._lock:
            if self._redis is None:
                self._redis = connect(self._broker_url, look_up=self._look_up)
            return self._redis

    def subscriber(self) -> Redis:
        """Return a separate Redis client for subscriptions. Its timeout is short: a listener then polls the store."""
        return connect(
            self._broker_url,
            timeout_s=min(TIMEOUT_S, SUBSCRIBE_TIMEOUT_S),
            health_check_s=SUBSCRIPTION_CHECK_S,
            look_up=self._look_up,
        )

    def check(self) -> None:
        """Check that Redis answers before anything is accepted. Costs nothing while publishing works.

        Raises BrokerUnavailable.
        """
        if self._doubtful:
            self.look()

    def look(self) -> None:
        """Look which nodes are alive. Raises BrokerUnavailable."""
        with as_unavailable(self.redis):
            self._nodes.look(self.redis)
        self._doubtful = False

    def check_writes(self) -> None:
        """Check that Redis takes messages: a full or read-only Redis answers `check` too.

        Raises BrokerUnavailable or Overloaded.
        """
        with as_unavailable(self.redis):
            self.redis.set("argosy.probe", b"", px=1)

    def publish(self, messages: Sequence[Message]) -> None:
        """Push all messages as `push` does. Raises BrokerUnavailable or Overloaded; some may have been pushed."""
        for refusal in self.push(messages):
            if refusal is not None:
                raise refusal

    def push(self, messages: Sequence[Message]) -> list[BrokerUnavailable | Overloaded | None]:
        """Push all messages in one round trip, which also looks at the live nodes if that is due.

        Return the refusal of each message, None if Redis took it. Raises BrokerUnavailable or Overloaded if there is no
        answer for each of several; some may have been pushed.
        """
        redis, look = self.redis, self._nodes.due
        try:
            if len(messages) == 1 and not look:  # a lone interactive item: no pipeline to set up
                with as_unavailable(redis):
                    redis.lpush(*messages[0])
                return [None]
            with as_unavailable(redis), redis.pipeline(transaction=False) as pipeline:
                for key, data in messages:
                    pipeline.lpush(key, data)
                asked = self._nodes.ask(pipeline) if look else []
                answers = pipeline.execute(raise_on_error=False)
        except (BrokerUnavailable, Overloaded):
            self._doubtful = True
            raise
        refusals = [_refusal(redis, answer) for answer in answers]
        if any(refusals):
            self._doubtful = True
        if look and not any(refusals[len(messages) :]):
            self._nodes.hear(asked, answers[len(messages) :])
        return refusals[: len(messages)]

    def close(self) -> None:
        """Close the connections. The publisher connects again on the next use."""
        with self._lock:
            client, self._redis = self._redis, None
            self._doubtful = True
        if client is not None:
            client.close()


def connect(
    broker_url: str,
    *,
    timeout_s: float | None = None,
    health_check_s: int = HEALTH_CHECK_S,
    look_up: Callable[[], str] | None = None,
) -> Redis:
    """Return a Redis client with bounded waits (default: TIMEOUT_S), not yet connected. Raises ConfigurationError."""
    from redis.backoff import ExponentialBackoff
    from redis.exceptions import ConnectionError as NotConnected
    from redis.retry import Retry

    timeout_s = TIMEOUT_S if timeout_s is None else timeout_s
    try:
        redis = _client(
            broker_url,
            socket_connect_timeout=timeout_s,
            socket_timeout=timeout_s,
            health_check_interval=health_check_s,
            # enough for a connection that a restarted server dropped; a server that is down is reported, not waited for
            retry=Retry(ExponentialBackoff(cap=0.2, base=0.05), 2, supported_errors=(NotConnected,)),
        )
        pool = redis.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # not connected; raises for an unknown option
        if look_up is not None:
            pool.connection_class = _looked_up(look_up)
        return redis
    except (ValueError, TypeError):  # its text may hold a part of the password
        raise ConfigurationError(
            f"broker: {masked(broker_url)!r} is not a Redis URL; write redis://user:password@host:6379/0, and signs "
            "like # / ? @ % of the password as %23 %2F %3F %40 %25"
        ) from None


def _client(broker_url: str, **options: Any) -> Redis:
    """Return a client of a server, or of the master that sentinels name whenever it connects. Raises ValueError."""
    from redis import Redis, Sentinel

    group = sentinels(broker_url)
    if group is None:
        socket = unix_socket(broker_url)
        return Redis.from_url(socket, **options) if socket else Redis.from_url(broker_url, **options, **KEEPALIVE)
    asking = sentinel_options(options) | group.own
    watching = Sentinel(group.hosts, sentinel_kwargs=asking)  # type: ignore[no-untyped-call]
    login = {"db": group.database, "username": group.user, "password": group.password}
    client: Redis = watching.master_for(group.master, **login, **options, **KEEPALIVE)  # type: ignore[no-untyped-call]
    return client


def _looked_up(look_up: Callable[[], str]) -> type[RedisConnection]:
    """Return the class of connections whose address and password are looked up each time that they connect."""
    from redis.connection import Connection, parse_url

    class LookedUp(Connection):
        def _connect(self) -> Any:
            with suppress(ConfigurationError):  # the fleet has stopped: the address before refuses the connection
                found: Any = parse_url(look_up())  # type: ignore[no-untyped-call]  # redis-py's
                self.host, self.port, self.password = found["host"], found["port"], found.get("password")
            return super()._connect()  # type: ignore[no-untyped-call]

    return LookedUp


@contextmanager
def as_unavailable(redis: Redis) -> Iterator[None]:
    """Turn redis-py's errors into BrokerUnavailable, or Overloaded if memory is full; the message names the address."""
    from redis.exceptions import AuthenticationError, OutOfMemoryError, RedisError, ResponseError
    from redis.exceptions import TimeoutError as Silent

    try:
        yield
    except AuthenticationError as error:
        raise BrokerUnavailable(f"{_where(redis)} refuses the login: {error}; check user and password") from error
    except OutOfMemoryError as error:
        raise Overloaded(f"{_where(redis)} is full: {_said(error)}; {remedy(error)}") from error
    except ResponseError as error:
        raise BrokerUnavailable(f"{_where(redis)} refuses: {_said(error)}; {remedy(error)}") from error
    except (RedisError, OSError) as error:
        if isinstance(error, Silent):
            redis.connection_pool.disconnect(inuse_connections=False)  # the idle ones may be as silent
        raise BrokerUnavailable(f"{_where(redis)}: {error}; {remedy(error)}") from error


def _refusal(redis: Redis, answer: object) -> BrokerUnavailable | Overloaded | None:
    """Return the error for an answer that is one of redis-py's errors."""
    if not isinstance(answer, Exception):
        return None
    try:
        with as_unavailable(redis):
            raise answer
    except (BrokerUnavailable, Overloaded) as error:
        return error


def _said(error: Exception) -> str:
    return str(error).rstrip(".")


def remedy(error: Exception) -> str:
    """Return the advice for an error of redis-py."""
    from redis.exceptions import BusyLoadingError, NoPermissionError, OutOfMemoryError, ReadOnlyError

    codes: dict[type[Exception], str] = {
        OutOfMemoryError: "OOM",
        ReadOnlyError: "READONLY",
        NoPermissionError: "NOPERM",
        BusyLoadingError: "LOADING",
    }
    # redis-py puts the number of a pipeline's command before Redis's answer
    answer = str(error).rpartition("caused error: ")[2]
    code = codes.get(type(error)) or answer.partition(" ")[0]
    return _REMEDIES.get(code, "check that it runs and can be reached")


def _where(redis: Redis) -> str:
    settings, master = redis.get_connection_kwargs(), getattr(redis.connection_pool, "service_name", None)
    if master is not None:
        return f"Redis (the master of {master!r}, by its sentinels)"
    return f"Redis at {settings.get('path') or '{host}:{port}'.format(**settings)}"
