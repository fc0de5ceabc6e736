"""Celery's consumer, which notes its progress, and sends the events for Flower a few times a second.

An envelope makes three events. Sending one costs the consumer's thread as much Python as all other handling of a lone
interactive item, so that events and items would wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from celery.worker.consumer import Consumer as CelerysConsumer

from results_store.loops.loop import TICK_S, note

#: The interval between sends. Celery sends sooner if there are many events (`EventDispatcher.buffer_limit`).
EVENTS_EVERY_S = 0.1

#: The most seconds for which the consumer may wait for an answer of the broker, or for a connection.
BROKER_LIMIT_S = 60.0


class Consumer(CelerysConsumer):  # type: ignore[misc] # Celery is untyped
    """The consumer for ``worker_consumer``. Its progress is that of the thread that runs it."""

    def register_with_event_loop(self, hub: Any) -> None:
        """Send events at intervals. Called for each new connection; Celery ends the timers of the old one."""
        super().register_with_event_loop(hub)
        hub.call_repeatedly(EVENTS_EVERY_S, self._flush_events)
        hub.call_repeatedly(TICK_S, _note_turn)

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

    def on_send_event_buffered(self) -> None:
        """Leave a new event in the buffer."""

    def shutdown(self) -> None:
        """Send the last events, then shut down."""
        with suppress(*self.connection_errors):
            self._flush_events()
        super().shutdown()


def _note_turn() -> None:
    note("waiting for the broker", BROKER_LIMIT_S)
