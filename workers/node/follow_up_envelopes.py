"""The envelopes that follow from stored results, on their way to Redis: pushed at once, marked as published a little later."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from producers.wire.publisher import Publisher, message
from results_store.records import NewEnvelope
from results_store.store import Store

#: How often what was published is marked so. One left unmarked by a crash costs a second message, and only if it is not
#: claimed by then.
MARK_EVERY_S = 1.0


class Following:
    """Publishes accepted envelopes. Thread-safe. What it cannot push, the reconciler publishes."""

    def __init__(self, store: Store, publisher: Publisher) -> None:
        self._store = store
        self._publisher = publisher
        self._unmarked: list[str] = []
        self._lock = threading.Lock()

    def publish(self, envelopes: Sequence[NewEnvelope]) -> None:
        """Push envelopes. Raises BrokerUnavailable, Overloaded."""
        self._publisher.publish([message(envelope, about="next step") for envelope in envelopes])
        with self._lock:
            self._unmarked += [envelope.id for envelope in envelopes]

    def mark(self) -> None:
        """Note in the store what was published. Raises StoreUnavailable; then it is noted next time."""
        with self._lock:
            ids, self._unmarked = self._unmarked, []
        if not ids:
            return
        try:
            self._store.mark_published(ids, time.time())
        except BaseException:
            with self._lock:
                self._unmarked += ids
            raise
