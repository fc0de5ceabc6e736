"""The senders of refused and of discarded messages hear of it, if they wait with Argosy's result backend."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import BoundedSemaphore
from time import sleep
from typing import Any

from celery import Celery
from celery.exceptions import NotRegistered

from producers.wire.errors import InvalidMessage
from producers.wire.messages import is_name
from producers.wire.publisher import DURABLE
from results_store.errors import StoreUnavailable
from workers.consumer.slots import settle

#: The most refusals that wait to be stored. Senders of a flood beyond them hear nothing.
MOST_WAITING = 1000

#: Seconds until a revocation is stored again that the database did not take.
AGAIN_S = 0.5


class RefusedSenders:
    """Stores refusals as failures of their tasks, in a thread of its own: the consumer waits for none of them."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._places = BoundedSemaphore(MOST_WAITING)
        self._thread = ThreadPoolExecutor(1, "refused-senders", self._begin)
        self._closing = self._store_is_away = False

    def tell(self, message: dict[str, Any], error: BaseException) -> None:
        """Store the refusal of a message soon. Whatever the message holds, its refusal was logged."""
        with suppress(Exception):
            headers, id_ = message.get("headers") or {}, message["properties"]["correlation_id"]
            if not is_name(id_) or headers.get(DURABLE) or headers.get("ignore_result"):
                return
            reason = error.__cause__ if isinstance(error.__cause__, NotRegistered) else error
            if not isinstance(reason, NotRegistered | InvalidMessage):
                reason = InvalidMessage(type(error).__name__)  # its arguments may hold a part of the message
            if self._places.acquire(blocking=False):
                self._thread.submit(self._store, id_, reason)

    def revoke(self, request: Any, reason: str) -> None:
        """Store soon that a task was revoked, and then acknowledge its message, however long the database is away.

        A worker that stops meanwhile returns the message.
        """
        with suppress(RuntimeError):  # the thread has ended
            self._thread.submit(self._revoke, request, reason)

    def close(self) -> None:
        """Store the refusals that wait, and end the thread. A store that is away is waited for once, not for each."""
        self._closing = True
        self._thread.shutdown()

    def _begin(self) -> None:
        self._app.backend.always_retry = False  # this thread's own: it must not wait for a database that is away

    def _store(self, id_: str, reason: BaseException) -> None:
        try:
            if not (self._closing and self._store_is_away):
                self._app.backend.mark_as_failure(id_, reason)
                self._store_is_away = False
        except Exception:  # noqa: BLE001 - the backend's own
            self._store_is_away = True
        finally:
            self._places.release()

    def _revoke(self, request: Any, reason: str) -> None:
        while not (self._closing and self._store_is_away):
            try:
                request.store_revoked(reason)
            except StoreUnavailable:
                self._store_is_away = True
                sleep(AGAIN_S)
            except Exception as error:  # noqa: BLE001 - the backend's own
                settle(request, error)
                return
            else:
                self._store_is_away = False
                request.acknowledge()
                return
