"""Celery's Redis transport and task strategy, guarded against messages and broken connections that would end the worker.

Whoever reaches the broker can put anything on a queue. Stock kombu and Celery let some of it (no JSON, no properties, an
empty body) raise in the consumer's loop: the worker ends, gives the message back, and so does the next worker. Here
such a message is logged and acknowledged; it names no envelope, so there is no row to fail.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from queue import Empty
from typing import Any

from celery.worker import strategy
from kombu.transport import redis
from redis.exceptions import ConnectionError  # noqa: A004 - the one that kombu expects

logger = logging.getLogger(__name__)


class QoS(redis.QoS):  # type: ignore[misc] # kombu is untyped
    """Closes a channel whose broker is away, though what it has not acknowledged cannot be put back."""

    def restore_unacked(self, client: Any = None) -> None:
        try:
            super().restore_unacked(client)
        except Exception as error:  # noqa: BLE001 - whatever it is, the channel must get closed
            # What is held here goes on and is committed; what is not comes back when its lease runs out.
            logger.warning("messages were not put back: %s: %s", type(error).__name__, error)
            self._delivered.clear()


class Channel(redis.Channel):  # type: ignore[misc] # kombu is untyped
    """Reads on after a message that is not even kombu's, and says ConnectionError where its connection is no more."""

    QoS = QoS

    def _connparams(self, *args: Any, **options: Any) -> Any:
        # A thread acknowledges what it did on the channel that the message came by. When kombu has closed that meanwhile,
        # AttributeError would come of it and end the worker; a ConnectionError is expected at all these places.
        if self.connection is None or self.connection.client is None:
            raise ConnectionError("the connection to the broker was lost, and this channel with it")
        return super()._connparams(*args, **options)

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            # it is popped and not yet among the unacknowledged: gone, as it should be
            logger.warning("put aside what is no message: %s: %s", type(error).__name__, error)
            raise Empty from error


class Transport(redis.Transport):  # type: ignore[misc] # kombu is untyped
    """kombu's Redis transport with the guarded channel."""

    Channel = Channel


def guarded(task: Any, app: Any, consumer: Any, **options: Any) -> Callable[..., None]:
    """Celery's default strategy, for a task's `Strategy`, with a look at the body first."""
    handle = strategy.default(task, app, consumer, **options)

    def task_message_handler(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **more: Any) -> None:
        try:
            _check_protocol_2(message)
        except Exception as error:  # noqa: BLE001 - whatever decoding hostile bytes raises
            logger.warning("put aside message %s: %s: %s", message.headers.get("id"), type(error).__name__, error)
            message.reject_log_error(logger, consumer.connection_errors)
            return
        handle(message, body, ack, reject, callbacks, **more)

    return task_message_handler


def _check_protocol_2(message: Any) -> None:
    """Raise unless the body is ``[args, kwargs, embed]``. The message keeps it decoded for the request."""
    payload = message.payload
    if not isinstance(payload, list | tuple) or len(payload) != 3:
        raise ValueError("the body is not [args, kwargs, embed]")
    arguments, keywords, embed = payload
    if not (isinstance(arguments, list | tuple) and isinstance(keywords, dict) and isinstance(embed, dict | None)):
        raise TypeError("the body is not [list, mapping, mapping]")
