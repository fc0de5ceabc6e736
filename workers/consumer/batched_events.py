"""Celery's consumer, with the events that Flower sees sent a few times a second instead of each at once.

An envelope makes three of them, and each sending costs the consumer's thread as much Python as a lone interactive item
spends in all the others: they would wait for each other.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from celery.worker.consumer import Consumer as CelerysConsumer

#: How often events are sent. Celery itself sends them sooner once there are many (`EventDispatcher.buffer_limit`).
EVENTS_EVERY_S = 0.1


class Consumer(CelerysConsumer):  # type: ignore[misc] # Celery is untyped
    """For ``worker_consumer``."""

    def register_with_event_loop(self, hub: Any) -> None:
        """Called with every new connection; Celery ends the timers of the one before."""
        super().register_with_event_loop(hub)
        hub.call_repeatedly(EVENTS_EVERY_S, self._flush_events)

    def on_send_event_buffered(self) -> None:
        """An event waits now; it goes with the others."""

    def shutdown(self) -> None:
        """Tell of what was done last, too."""
        with suppress(*self.connection_errors):
            self._flush_events()
        super().shutdown()
