"""The one Celery task: an envelope in, its results committed, a summary out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.app.task import get_actual_ignore_result
from celery.exceptions import Reject

from producers.wire.messages import VERSION, Priority
from producers.wire.queues import TASK
from workers.envelope.execution import EnvelopeInterrupted

if TYPE_CHECKING:
    from workers.node.node import Node


def register(app: Celery, node: Node) -> None:
    """Give `app` the task, bound to the node that does its work.

    A foreign application calls it by name, with none of our code (``app.send_task(TASK, [envelope], queue="argosy.text")``): then
    the summary holds the results too, and goes to Celery's result backend. Our own messages ask for neither.
    """

    @app.task(name=TASK, bind=True, typing=False, ignore_result=False, Strategy="workers.consumer.transport:guarded")  # type: ignore[untyped-decorator] # Celery is untyped
    def run_envelope(self: Any, envelope: Any) -> dict[str, Any]:
        reply = not get_actual_ignore_result(self, self.request)
        try:
            return node.run(_completed(envelope, self.request.id), reply=reply)
        except EnvelopeInterrupted as interrupted:
            # an operator's stop is nobody's failure: the message goes back to its queue, for another worker
            raise Reject(str(interrupted), requeue=True) from interrupted


def _completed(envelope: Any, task: str) -> Any:
    """Fill in what a foreign sender may leave out: everything but `model` and `items`."""
    if not isinstance(envelope, dict):
        return envelope
    usual = {"version": VERSION, "id": task, "job": task, "priority": int(Priority.STANDARD), "queued_at": time.time()}
    return usual | envelope
