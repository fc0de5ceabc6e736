"""The one Celery task: an envelope in, its results committed, a summary out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.exceptions import Reject

from producers.queues import TASK
from workers.execution import EnvelopeInterrupted

if TYPE_CHECKING:
    from workers.node import Node


def register(app: Celery, node: Node) -> None:
    """Give `app` the task, bound to the node that does its work."""

    @app.task(name=TASK, typing=False, Strategy="workers.transport:guarded")  # type: ignore[untyped-decorator] # Celery is untyped
    def run_envelope(envelope: Any) -> dict[str, Any]:
        try:
            return node.run(envelope)
        except EnvelopeInterrupted as interrupted:
            # an operator's stop is nobody's failure: the message goes back to its queue, for another worker
            raise Reject(str(interrupted), requeue=True) from interrupted
