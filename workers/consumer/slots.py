"""Celery's pool of threads. A message whose run ends in an error outside its task is refused and frees its slot.

Celery's tracer may raise around the task, as when it cannot send an error callback. In a pool of threads nobody would
hear of it, and the message would never be acknowledged. A message whose task has no state in the database, because that
is away, goes back to its queue.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from celery.concurrency.thread import ApplyResult
from celery.concurrency.thread import TaskPool as CelerysTaskPool
from celery.exceptions import BackendStoreError

from producers.wire.errors import InvalidMessage
from producers.wire.publisher import DURABLE
from results_store.errors import StoreUnavailable
from workers.consumer.refused_messages import encoded

#: The errors outside a task that say that the result backend is away. It has tried for about two minutes.
AWAY = (BackendStoreError, StoreUnavailable)


class TaskPool(CelerysTaskPool):  # type: ignore[misc] # Celery is untyped
    """The pool for ``worker_pool``."""

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Any = None,
        kwargs: Any = None,
        callback: Any = None,
        accept_callback: Any = None,
        **_: Any,
    ) -> ApplyResult:
        request = callback.__self__

        def ended(answer: Any) -> None:
            callback(answer)
            failed, result, _ = answer
            # the stored envelope of a durable message ends in its own row
            if failed and not request.message.headers.get(DURABLE):
                error = getattr(result.exception, "exc", result.exception)
                if isinstance(error, InvalidMessage):
                    _refuse(request.message, error)

        result = super().on_apply(target, args, kwargs, ended, accept_callback)
        result.f.add_done_callback(partial(_ended, request))
        return result


def _ended(request: Any, run: Future[Any]) -> None:
    if not run.cancelled() and (error := run.exception()) is not None:
        settle(request, error)


def settle(request: Any, error: BaseException) -> None:
    """End a message after an error outside its task: refuse it, or return it if the database is away."""
    if isinstance(error, AWAY):
        request.reject(requeue=True)
        return
    _refuse(request.message, error)
    request.acknowledge()


def _refuse(message: Any, error: BaseException) -> None:
    raw = message._raw  # noqa: SLF001 - kombu keeps it for its own notes
    message.channel.refused.note((encoded(raw), raw, message.delivery_info["routing_key"], error))
