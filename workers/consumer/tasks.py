"""The only Celery task: it takes an envelope, commits its results and returns a summary."""

from __future__ import annotations

import logging
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.app.task import get_actual_ignore_result
from celery.exceptions import Ignore, Reject

from producers.wire.errors import InvalidMessage
from producers.wire.fleet_file import known
from producers.wire.messages import VERSION, Envelope, Priority
from producers.wire.publisher import DURABLE
from producers.wire.queues import TASK
from producers.wire.tracing.spans import processing
from results_store.errors import StoreUnavailable
from results_store.records import Claim
from workers.consumer.unacknowledged import times_returned
from workers.envelope.gate import EnvelopeInterrupted

if TYPE_CHECKING:
    from workers.node.node import Node

logger = logging.getLogger(__name__)

#: Seconds until a message that needs the database goes back to its queue, from which it is taken again.
PAUSE_S = 1.0


def register(app: Celery, node: Node) -> None:
    """Register the task, bound to the node that does its work.

    Other applications call it by name, without Argosy's code:
    ``app.send_task(TASK, [envelope], queue="argosy.text")``. The summary then holds the results too, and goes to
    Celery's result backend. Argosy's own messages request neither.
    """

    @app.task(  # type: ignore[untyped-decorator] # Celery is untyped
        name=TASK,
        bind=True,
        shared=False,
        typing=False,
        ignore_result=False,
        throws=(InvalidMessage,),
    )
    def run_envelope(self: Any, *arguments: Any, **named: Any) -> dict[str, Any]:
        reply = not get_actual_ignore_result(self, self.request)
        try:
            envelope = _envelope(arguments, named)
            if self.request.get(DURABLE) is None:  # a header of Argosy's own messages, whose versions may differ
                _check_fields(envelope)
            completed = _completed(envelope, self.request.id)
            with processing(self.request, (self.request.delivery_info or {}).get("routing_key", "")):
                summary = node.run(completed, reply=reply, returned=times_returned(self.request))
        except EnvelopeInterrupted as interrupted:
            # neither a stop by the operator nor another node's speed is a failure: the message returns to its queue
            raise Reject(str(interrupted), requeue=True) from interrupted
        except StoreUnavailable as away:
            if self.request.get(DURABLE):
                raise  # a reconciler publishes the stored envelope again
            time.sleep(PAUSE_S)
            raise Reject(str(away), requeue=True) from away
        except InvalidMessage as error:
            _say_once(str(error))
            raise
        if reply and summary.get("skipped") == Claim.HELD.value and completed["id"] == self.request.id:
            raise Ignore("the same message runs here already, and that run stores the task's answer")
        return summary


@lru_cache(maxsize=256)
def _say_once(reason: str) -> None:
    """Log a reason at its first time: a stored envelope that cannot be read comes again until it has no attempts."""
    logger.warning("an envelope cannot be read: %s", reason)


def _envelope(arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    if len(arguments) + len(named) != 1 or named.keys() - {"envelope"}:
        raise InvalidMessage("the task takes one argument, the envelope")
    return arguments[0] if arguments else named["envelope"]


def _check_fields(envelope: Any) -> None:
    """Raise InvalidMessage for a field that an envelope does not have: its sender would not be obeyed."""
    fields = Envelope.__struct_fields__
    for name in envelope if isinstance(envelope, dict) else ():
        if name not in fields:
            raise InvalidMessage(f"envelope: {name!r:.80} is not a field; {known(str(name)[:80], fields)}")


def _completed(envelope: Any, task: str) -> Any:
    """Fill in the fields that a foreign sender may leave out: all but `model` and `items`."""
    if not isinstance(envelope, dict):
        return envelope
    usual = {"version": VERSION, "id": task, "job": task, "priority": int(Priority.STANDARD), "queued_at": time.time()}
    return usual | envelope
