"""Celery's remote control, reduced to the questions of Flower.

Anyone who reaches the broker can broadcast to all workers. Stock Celery lets a broadcast end a worker, stop its queues,
or slow it down, and some odd broadcasts end it too. Here a worker answers inspections, refuses all other commands by
name, and drops broadcasts that cannot be read.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

import msgspec
from celery.app.control import Control as CelerysControl
from kombu import pidbox

from producers.wire.messages import is_name

logger = logging.getLogger(__name__)

#: The commands that are answered, each with its arguments. Flower sends all but `ping`, and `enable_events` changes
#: nothing: the events are always on.
ANSWERED: dict[str, frozenset[str]] = {
    "active": frozenset({"safe"}),
    "active_queues": frozenset(),
    "conf": frozenset({"with_defaults"}),
    "enable_events": frozenset(),
    "ping": frozenset(),
    "registered": frozenset(),
    "reserved": frozenset(),
    "revoked": frozenset(),
    "scheduled": frozenset(),
    "stats": frozenset(),
}

_CANCEL = "cancel the job, by `argosy cancel JOB`"
_QUEUES = "name the models in fleet.toml"
_SLOTS = "set `worker.concurrency`"

#: The remedy for each command that people send to a worker.
REMEDIES = {
    "revoke": _CANCEL,
    "revoke_by_stamped_headers": _CANCEL,
    "terminate": _CANCEL,
    "shutdown": "send SIGTERM to the worker's process",
    "pool_restart": "send SIGTERM to the worker's process; its supervisor starts it again",
    "rate_limit": "limit a tenant, by `argosy tenants set`",
    "time_limit": "set `worker.batch_timeout_s`, or the deadline of an item",
    "pool_grow": _SLOTS,
    "pool_shrink": _SLOTS,
    "autoscale": _SLOTS,
    "add_consumer": _QUEUES,
    "cancel_consumer": _QUEUES,
}


class _ReplyTo(msgspec.Struct, frozen=True):
    exchange: str
    routing_key: str


class _Broadcast(msgspec.Struct, frozen=True):
    method: str
    arguments: dict[str, Any] | None = None
    destination: list[str] | None = None
    pattern: None = None  # a regular expression of strangers could run for hours
    reply_to: _ReplyTo | None = None
    ticket: str | None = None


class ControlNode(pidbox.Node):  # type: ignore[misc] # kombu is untyped
    """A worker's end of remote control. It never raises because of a broadcast."""

    def handle_message(self, body: Any, message: Any = None) -> None:
        """Answer an inspection, or refuse the command. Commands for other workers are ignored."""
        try:
            sent = msgspec.convert(body, _Broadcast)
        except msgspec.ValidationError as error:
            dropped(f"{error}"[:200])
            return
        if sent.destination and self.hostname not in sent.destination:
            return
        reply = self._answer(sent)
        to = sent.reply_to
        if to and to.exchange == self.mailbox.reply_exchange.name and is_name(to.routing_key):
            self.reply({self.hostname: reply}, to.exchange, to.routing_key, sent.ticket)

    def _answer(self, sent: _Broadcast) -> Any:
        given = {name: value for name, value in (sent.arguments or {}).items() if value}
        if sent.method not in ANSWERED:
            return {"error": _refused(sent.method[:100])}
        if unknown := sorted(given.keys() - ANSWERED[sent.method]):
            return {"error": f"`{sent.method}` takes no argument {unknown[0][:100]!r} here; send it without"}
        try:
            return self.handlers[sent.method](self.state, **given)
        except Exception as error:
            logger.exception("%s cannot be answered", sent.method)
            return {"error": f"{type(error).__name__}: {error}"}


class ControlMailbox(pidbox.Mailbox):  # type: ignore[misc] # kombu is untyped
    node_cls = ControlNode


class Control(CelerysControl):  # type: ignore[misc] # Celery is untyped
    """The class for ``control_cls`` of a Celery application."""

    Mailbox = ControlMailbox


@lru_cache(maxsize=256)
def _refused(method: str) -> str:
    """Return the answer to a command that is not answered, and log it at its first time."""
    remedy = REMEDIES.get(method, "Argosy's workers answer only " + ", ".join(sorted(ANSWERED)))
    problem = f"remote control: {method!r} is refused: {remedy}"
    logger.warning("%s", problem)
    return problem


@lru_cache(maxsize=256)
def dropped(cause: str) -> None:
    """Log a broadcast that cannot be read, at the first time of its cause."""
    logger.warning("remote control: dropped a broadcast that cannot be read: %s", cause)
