"""The request of an envelope's task, as Celery calls a message that a worker has received."""

from __future__ import annotations

from typing import Any

from celery.worker.request import Request

from producers.wire.publisher import DURABLE


class EnvelopeRequest(Request):  # type: ignore[misc] # Celery is untyped
    """A request that Celery's revokes discard only if it has no row in the store.

    A worker learns revoked ids from remote control and from the workers of other applications that start beside it,
    and keeps them for hours.
    """

    def revoked(self) -> bool:
        """Return whether the message is discarded. `argosy cancel` ends durable envelopes, with results.

        If a durable envelope was discarded, the store would owe its results, and publish it again, for ever.
        """
        return not self.message.headers.get(DURABLE) and bool(super().revoked())

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Do nothing: the pool's threads cannot be ended, and Celery would refuse the message at its start."""
