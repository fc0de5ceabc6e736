"""The request of a task, as Celery calls a message that a worker has received."""

from __future__ import annotations

from typing import Any

from celery.worker.request import Request
from celery.worker.state import task_ready

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

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """Have another thread store the revocation and acknowledge the message: the consumer waits for no database."""
        self._already_revoked = True
        task_ready(self)
        self.send_event("task-revoked", terminated=terminated, signum=signum, expired=expired)
        self.message.channel.on_revoked(self, reason)

    def store_revoked(self, reason: str) -> None:
        """Store that the task was revoked. Raises StoreUnavailable."""
        revoked = {"request": self._context, "store_result": self.store_errors}
        self.task.backend.mark_as_revoked(self.id, reason, **revoked)

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Do nothing: the pool's threads cannot be ended, and Celery would refuse the message at its start."""
