"""What is paused, as far as a claim does not tell it: envelopes that have begun, and those without a row."""

from __future__ import annotations

import logging
from collections.abc import Collection

from producers.wire.messages import Envelope
from results_store.store import Store
from workers.batching.batcher import Batcher
from workers.node.held_envelopes import HeldEnvelopes

logger = logging.getLogger(__name__)

#: Seconds between looks for pauses.
LOOK_EVERY_S = 1.0


class PausedWork:
    """The pauses that a node knows. Call `look` from a single thread."""

    def __init__(self, store: Store, held: HeldEnvelopes) -> None:
        self._store = store
        self._held = held
        self.subjects: frozenset[str] = frozenset()

    def look_first(self) -> None:
        """Read the pauses before the first envelope. Raises StoreUnavailable."""
        self.subjects = self._store.pauses.subjects()

    def look(self, batcher: Batcher) -> None:
        """Read the pauses, and give back the envelopes whose items wait for batches here.

        Their next claims find them paused. Batches that run end, and their results are stored. Raises StoreUnavailable.
        """
        self.subjects = self._store.pauses.subjects()
        if not self.subjects:
            return
        for held in self._held.now():
            if held.may_return and held.envelope and is_paused(held.envelope, self.subjects):
                ids = {"job": held.job, "envelope": held.id}
                logger.info("envelope %s goes back to its queue: it is paused", held.id, extra=ids)
                self._held.give_back(held, batcher, begun=False)


def is_paused(envelope: Envelope, subjects: Collection[str]) -> bool:
    """Return whether a pause holds some of an envelope."""
    if f"model:{envelope.model}" in subjects or f"tenant:{envelope.tenant}" in subjects:
        return True
    return any(f"task:{task}" in subjects for item in envelope.items for task in item.tasks)
