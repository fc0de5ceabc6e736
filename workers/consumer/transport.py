"""Celery's Redis transport and task strategy, guarded against invalid messages, broken connections and a Redis that
refuses commands.

Any client of the broker can put anything on a queue. Stock kombu and Celery let some messages (no JSON, no properties,
an empty body) raise in the consumer's loop: the worker ends and returns the message, and the next worker ends too. Here
such a message is logged and acknowledged. It names no envelope, so there is no row to fail.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from queue import Empty
from time import monotonic
from typing import Any

from celery.worker import strategy
from kombu.transport import redis
from redis import Redis
from redis.exceptions import (
    ConnectionError,  # noqa: A004 - the class that kombu expects
    ResponseError,
)

from workers.consumer.refusals import Refusals
from workers.consumer.unacknowledged import QoS
from workers.node.lanes import may_take

logger = logging.getLogger(__name__)


class Client(Redis):
    """A client to which a refused PING is an answer: MISCONF and BUSY refuse PING, too."""

    def ping(self, **options: Any) -> Any:
        try:
            return super().ping(**options)
        except ResponseError:
            return True


#: The interval at which Redis is asked again for a list that had its part of the slots.
POLL_S = 0.02


class Channel(redis.Channel):  # type: ignore[misc] # kombu is untyped
    """Read on after a message that is not kombu's, and raise ConnectionError if the connection is closed.

    If Redis refuses a command, the channel stays: it takes no messages for a while and then asks again. Refused events
    and replies to remote control are dropped.

    From each list (a queue's messages of one priority) it takes no more than `may_take` allows of the prefetch count.
    """

    QoS = QoS

    _kept_client: tuple[Any, Any] | None = None  # the pool, and its client

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._taking = Refusals("taking envelopes")
        self._hearing = Refusals("hearing remote control")
        self._telling = Refusals("sending events and replies to Flower")
        super().__init__(*arguments, **options)

    def _get_client(self) -> Any:
        return super()._get_client() if self.global_keyprefix else Client

    def _create_client(self, asynchronous: bool = False) -> Any:
        """Return the same client as long as its pool lasts.

        Making a client costs more than its commands, and each message needs a client three times. A client on a pool
        holds no connection, so any thread may use it.
        """
        if asynchronous:
            return super()._create_client(asynchronous)
        pool, kept = self.pool, self._kept_client
        if kept is None or kept[0] is not pool:
            kept = self._kept_client = pool, super()._create_client()
        return kept[1]

    def close(self) -> None:
        """Close the channel, and then the connection that kombu opens meanwhile.

        After closing the connections, kombu puts unacknowledged messages back over a new connection, which it forgets.
        Before, it waits for the last answer, which never comes over a silent connection.
        """
        try:
            if self._in_poll:
                with suppress(Empty, *self.connection_errors):
                    self._brpop_read()
            super().close()
        finally:
            self._disconnect_pools()

    def _brpop_start(self, timeout: float | None = None) -> None:
        if self._taking.waiting:
            return
        try:
            self._send_brpop(timeout)
        except ResponseError as error:  # of the PING that redis-py sends over an idle connection
            self._in_poll = None
            self._taking.refused(error)

    def _send_brpop(self, timeout: float | None) -> None:
        queues = self._queue_cycle.consume(len(self.active_queues))
        lists = [(queue, priority) for priority in self.priority_steps for queue in queues]
        held = self._held()
        free = self.qos.prefetch_count - held.total()
        wanted = [key for key in lists if may_take(held[key], free)]
        if not self.qos.prefetch_count or len(wanted) in (0, len(lists)):
            super()._brpop_start(timeout)
            return
        keys = [self._q_for_pri(*key) for key in wanted]
        arguments = ["BRPOP", *keys, POLL_S]
        if self.global_keyprefix:
            arguments = self.client._prefix_args(arguments)  # noqa: SLF001 - like kombu's own code
        self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        self.client.connection.send_command(*arguments)

    def _held(self) -> Counter[tuple[str, int]]:
        """Return the number of unacknowledged messages here, by list."""
        # Other threads acknowledge meanwhile: a slightly old copy is enough.
        gone = set(self.qos._dirty)  # noqa: SLF001 - kombu counts them so
        held = [message for tag, message in list(self.qos._delivered.items()) if tag not in gone]  # noqa: SLF001
        return Counter(self._list_of(message) for message in held)

    def _list_of(self, message: Any) -> tuple[str, int]:
        try:
            return message.delivery_info["routing_key"], self.priority(int(message.properties.get("priority") or 0))
        except (AttributeError, LookupError, TypeError, ValueError):  # a hand-made message
            return "", 0

    def _connparams(self, *args: Any, **options: Any) -> Any:
        # A thread acknowledges on the channel of its message. If kombu has closed the channel meanwhile, an
        # AttributeError would end the worker; a ConnectionError is expected at all these places.
        if self.connection is None or self.connection.client is None:
            raise ConnectionError("the connection to the broker was lost, and this channel with it")
        return super()._connparams(*args, **options)

    def _brpop_read(self, **options: Any) -> Any:
        try:
            taken = super()._brpop_read(**options)
        except Empty:
            self._taking.accepted()
            raise
        except ResponseError as error:
            self._taking.refused(error)
            raise Empty from error
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            # the message is popped and not among the unacknowledged: it is gone, as intended
            logger.warning("dropped an entry of a queue that is not a message: %s: %s", type(error).__name__, error)
            raise Empty from error
        self._taking.accepted()
        return taken

    def _subscribe(self) -> None:
        if not self._hearing.waiting:
            super()._subscribe()

    def _receive(self) -> Any:
        try:
            received = super()._receive()
        except ResponseError as error:
            self._hearing.refused(error)
            raise Empty from error
        self._hearing.accepted()
        return received

    def _put_fanout(self, *arguments: Any, **options: Any) -> None:
        try:
            super()._put_fanout(*arguments, **options)
        except ResponseError as error:
            self._telling.refused(error)
        else:
            self._telling.accepted()

    def _put(self, queue: str, message: Any, **options: Any) -> None:
        try:
            super()._put(queue, message, **options)
        except ResponseError as error:
            if not queue.endswith(".pidbox"):  # the replies' queues
                raise
            self._telling.refused(error)

    def _queue_bind(self, *arguments: Any) -> None:
        # Only a sender that names an exchange needs the binding, and it makes one itself.
        with suppress(ResponseError):
            super()._queue_bind(*arguments)

    def _delete(self, *arguments: Any, **options: Any) -> None:
        with suppress(ResponseError):  # the queue of a closed channel's remote control expires by itself
            super()._delete(*arguments, **options)

    def _size(self, queue: str) -> int:
        try:
            size: int = super()._size(queue)
        except ResponseError:  # asked for when a queue is declared, and not used
            return 0
        return size


class Transport(redis.Transport):  # type: ignore[misc] # kombu is untyped
    """kombu's Redis transport with the guarded channel. An unexpected refusal of Redis is like a lost connection."""

    Channel = Channel
    connection_errors = (*redis.Transport.connection_errors, ResponseError)


def guarded(task: Any, app: Any, consumer: Any, **options: Any) -> Callable[..., None]:
    """Celery's default strategy, for a task's `Strategy`, which checks the body first."""
    handle = strategy.default(task, app, consumer, **options)

    def task_message_handler(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **more: Any) -> None:
        try:
            _check_protocol_2(message)
        except Exception as error:  # noqa: BLE001 - whatever decoding hostile bytes raises
            logger.warning(
                "dropped the invalid message %s: %s: %s", message.headers.get("id"), type(error).__name__, error
            )
            message.reject_log_error(logger, consumer.connection_errors)
            return
        handle(message, body, ack, reject, callbacks, **more)

    return task_message_handler


def _check_protocol_2(message: Any) -> None:
    """Raise unless the body is ``[args, kwargs, embed]``. The message keeps the decoded body for the request."""
    payload = message.payload
    if not isinstance(payload, list | tuple) or len(payload) != 3:
        raise ValueError("the body is not [args, kwargs, embed]")
    arguments, keywords, embed = payload
    if not (isinstance(arguments, list | tuple) and isinstance(keywords, dict) and isinstance(embed, dict | None)):
        raise TypeError("the body is not [list, mapping, mapping]")
