"""The way out: envelopes into the store first, then onto Redis, then marked as published, lazily and in bulk."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from producers.errors import BrokerUnavailable
from producers.packing import Weighed, envelopes
from producers.publisher import Publisher, message
from producers.request import Request
from results_store.errors import StoreError
from results_store.records import NewEnvelope, NewJob

if TYPE_CHECKING:
    from results_store.store import Store

log = logging.getLogger(__name__)

#: Published envelopes are marked so together: this many, or this long after the first of them. One left unmarked by a
#: crash costs nothing but a second message, and only if it is not done by then.
MARK_COUNT = 64
MARK_AGE_S = 1.0


class Outbox:
    """Accepts and publishes envelopes. Thread-safe."""

    def __init__(self, store: Store, publisher: Publisher) -> None:
        self._store = store
        self._publisher = publisher
        self._unmarked: list[str] = []
        self._oldest_at = 0.0
        self._lock = threading.Lock()

    def send(
        self,
        request: Request,
        items: Sequence[Weighed],
        *,
        job: str,
        deadline_at: float | None,
        new_job: NewJob | None = None,
        expected_rows: int | None = None,
    ) -> tuple[str, ...]:
        """Accept items in one transaction, publish them in one round trip, return the ids of their envelopes.

        `new_job` is created in the same transaction; `expected_rows` is how many items the job must hold before.
        Raises BrokerUnavailable, StoreUnavailable or SubmissionConflict, and then accepted nothing. Once accepted,
        a failure to publish is logged and left to the fleet's reconciler.
        """
        self._publisher.check()
        sealed = envelopes(request, items, job=job, now=time.time(), deadline_at=deadline_at)
        self._store.add_envelopes(sealed, jobs=() if new_job is None else (new_job,), expected_items=expected_rows)
        ids = [envelope.id for envelope in sealed]
        try:
            self._publisher.publish([message(envelope, about=_about(envelope, request)) for envelope in sealed])
        except BrokerUnavailable as error:
            log.warning("%d envelopes are accepted but wait for the fleet to publish them: %s", len(ids), error)
        else:
            self._published(ids)
        return tuple(ids)

    def settle(self) -> None:
        """Mark in the store what was published."""
        with self._lock:
            ids, self._unmarked = self._unmarked, []
        if not ids:
            return
        try:
            self._store.mark_published(ids, time.time())
        except StoreError as error:
            log.warning("%d published envelopes stay unmarked and may be sent twice, harmlessly: %s", len(ids), error)

    def _published(self, ids: list[str]) -> None:
        with self._lock:
            if not self._unmarked:
                self._oldest_at = time.monotonic()
            self._unmarked += ids
            due = len(self._unmarked) >= MARK_COUNT or time.monotonic() - self._oldest_at >= MARK_AGE_S
        if due:
            self.settle()


def _about(envelope: NewEnvelope, request: Request) -> str:
    """What people see of an envelope in Flower: ``64 items, sentiment+topic``."""
    return f"{envelope.items} item{'' if envelope.items == 1 else 's'}, {'+'.join(request.models[envelope.model])}"
