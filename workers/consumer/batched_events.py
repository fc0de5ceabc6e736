"""Celery's consumer, sending the events for Flower a few times a second instead of each at once.

An envelope makes three events. Sending one costs the consumer's thread as much Python as all other handling of a lone
interactive item, so that events and items would wait for each other.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from celery.worker.consumer import Consumer as CelerysConsumer

#: The interval between sends. Celery sends sooner if there are many events (`EventDispatcher.buffer_limit`).
EVENTS_EVERY_S = 0.1


class Consumer(CelerysConsumer):  # type: ignore[misc] # Celery is untyped
    """The consumer for ``worker_consumer``."""

    def register_with_event_loop(self, hub: Any) -> None:
        """Send events at intervals. Called for each new connection; Celery ends the timers of the old one."""
        super().register_with_event_loop(hub)
        hub.call_repeatedly(EVENTS_EVERY_S, self._flush_events)

    def on_send_event_buffered(self) -> None:
        """Leave a new event in the buffer."""

    def shutdown(self) -> None:
        """Send the last events, then shut down."""
        with suppress(*self.connection_errors):
            self._flush_events()
        super().shutdown()
