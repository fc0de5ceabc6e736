"""Publish the envelopes that follow from stored results: push them to Redis at once, mark them a little later."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from producers.wire.publisher import Publisher, message
from results_store.records import NewEnvelope
from results_store.store import Store

#: Seconds between marking published envelopes. If a crash leaves one unmarked, it is published a second time, but only
#: if it is not claimed by then.
MARK_EVERY_S = 1.0


class FollowUpPublisher:
    """Publishes accepted envelopes. Thread-safe. The reconciler publishes any envelope that cannot be pushed here."""

    def __init__(self, store: Store, publisher: Publisher) -> None:
        self._store = store
        self._publisher = publisher
        self._unmarked: list[str] = []
        self._lock = threading.Lock()

    def publish(self, envelopes: Sequence[NewEnvelope]) -> None:
        """Push envelopes. Raises BrokerUnavailable or Overloaded."""
        reference = self._publisher.by_reference
        self._publisher.publish(
            [
                message(envelope, about="next step", reference=reference, at=envelope.created_at)
                for envelope in envelopes
            ]
        )
        with self._lock:
            self._unmarked += [envelope.id for envelope in envelopes]

    def mark(self) -> None:
        """Mark the pushed envelopes as published. Raises StoreUnavailable; the next call then marks them."""
        with self._lock:
            ids, self._unmarked = self._unmarked, []
        if not ids:
            return
        try:
            self._store.mark_published(ids)
        except BaseException:
            with self._lock:
                self._unmarked += ids
            raise
