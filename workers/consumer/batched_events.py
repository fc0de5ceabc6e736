"""Celery's consumer, which checks messages, notes its progress, and tells Redis a few times a second what can wait.

The events for Flower can wait, and the ends of messages that are not durable. An envelope makes three events. Sending
one costs the consumer's thread as much Python as all other handling of a lone interactive item, so that events and
items would wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from time import time
from typing import Any, NoReturn

from celery.exceptions import NotRegistered
from celery.worker.consumer import Consumer as CelerysConsumer

from producers.wire.errors import InvalidMessage
from results_store.loops.loop import TICK_S, note
from workers.consumer.foreign_messages import check_body, due_at
from workers.consumer.refused_senders import RefusedSenders

#: The interval between sends. Celery sends sooner if there are many events (`EventDispatcher.buffer_limit`), and the
#: next message that is not durable takes the ends of earlier ones along.
TELL_EVERY_S = 0.5

#: The most seconds for which the consumer may wait for an answer of the broker, or for a connection.
BROKER_LIMIT_S = 60.0

#: The interval at which messages are looked for whose time has come, or which are in lists of other applications.
LOOK_EVERY_S = 1.0

#: Celery's tasks that are refused. The first asks every second for the end of a chord, and chords in the result backend
#: of Argosy need none. The second sends any number of messages, to the broker of Celery's default application.
NOT_RUN = ("celery.chord_unlock", "celery.chunks")


class Consumer(CelerysConsumer):  # type: ignore[misc] # Celery is untyped
    """The consumer for ``worker_consumer``. Its progress is that of the thread that runs it.

    A message that cannot be run raises, and the channel refuses it.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._senders = RefusedSenders(self.app)

    def update_strategies(self) -> None:
        super().update_strategies()
        for task in NOT_RUN:
            self.strategies.pop(task, None)

    def create_task_handler(self, *arguments: Any, **options: Any) -> Callable[[Any], None]:
        handle = super().create_task_handler(*arguments, **options)
        self.task_consumer.channel.on_refused = self._senders.tell
        self.task_consumer.channel.on_revoked = self._senders.revoke
        self.task_consumer.channel.intake = self.app.intake
        self.task_consumer.channel.qos.forgets_later = True

        def check_and_handle(message: Any) -> None:
            check_body(message.payload, message.headers["task"])
            eta = message.headers.get("eta")
            due = None if eta is None else due_at(eta)
            if due is None:
                handle(message)
            elif message.channel.qos.is_noted_as_waiting(message.delivery_tag) or due > time():
                message.channel.qos.put_off(message, due)
            else:
                message.headers["eta"] = None  # or Celery would take it for later once more
                handle(message)

        return check_and_handle

    def on_decode_error(self, message: Any, exc: Exception) -> NoReturn:
        raise exc

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> NoReturn:
        raise exc

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> NoReturn:
        name = message.headers["task"]
        problem = f"this worker has no task {name[:100]!r}; send it to the queue of another application"
        raise InvalidMessage(problem) from NotRegistered(name)

    def register_with_event_loop(self, hub: Any) -> None:
        """Begin what is done at intervals. Called for each new connection; Celery ends the timers of the old one."""
        super().register_with_event_loop(hub)
        hub.call_repeatedly(TELL_EVERY_S, self._tell)
        hub.call_repeatedly(TICK_S, _note_turn)
        hub.call_repeatedly(LOOK_EVERY_S, self._look)

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, however long the broker is away; each try is a turn."""
        connect = conn.ensure_connection

        def with_turns(errback: Any, max_retries: Any, callback: Callable[[], object]) -> Any:
            def turn() -> None:
                _note_turn()
                callback()

            return connect(errback, max_retries, callback=turn)

        _note_turn()
        conn.ensure_connection = with_turns
        return super().ensure_connected(conn)

    def on_close(self) -> None:
        """Note a turn: the broker went away, and the consumer starts anew."""
        _note_turn()
        super().on_close()

    def _tell(self) -> None:
        self._flush_events()
        if self.task_consumer is not None:
            with suppress(*self.connection_errors):
                self.task_consumer.channel.qos.forget()

    def _look(self) -> None:
        if self.task_consumer is not None:
            self.task_consumer.channel.qos.restore_due()
            self.task_consumer.channel.look_at_others()

    def on_send_event_buffered(self) -> None:
        """Leave a new event in the buffer."""

    def stop(self) -> None:
        """Take no more messages. A message of the last poll goes back before the pool waits for the held ones."""
        super().stop()
        if self.task_consumer is not None:
            with suppress(*self.connection_errors):
                self.task_consumer.channel.end_poll()

    def shutdown(self) -> None:
        """Send the last events and ends of messages, then shut down."""
        with suppress(*self.connection_errors):
            self._tell()
        self._senders.close()
        super().shutdown()


def _note_turn() -> None:
    note("waiting for the broker", BROKER_LIMIT_S)
