"""The checks of a message before its task runs: properties, types of its headers, and the tasks that it wants sent.

Celery checks little: a header of the wrong type raises somewhere between the consumer and the end of the task.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
from kombu.utils.json import register_type

from producers.wire.errors import InvalidMessage
from producers.wire.messages import JSON, MSGPACK, is_name, new_id
from producers.wire.queues import TASK

#: The most tasks that a message may have its worker send: callbacks, error callbacks, and those of chains and chords.
MOST_SENT = 1000

#: The largest exponent of a decimal number, as in 128 bits (IEEE 754).
MOST_EXPONENT = 6144

#: The types of signatures that Celery sends. It reads others too: for "chunks" it sends a task for each of any number
#: of values.
_TYPES = (None, "chain", "group", "chord")

#: Keys of Redis that are kombu's own, so that no task is sent to a queue of such a name.
_KOMBUS = ("_kombu", "unacked")


class _Headers(msgspec.Struct, frozen=True):
    """The headers that Celery reads. Other headers are the sender's own."""

    task: str
    id: str
    root_id: str | None = None
    parent_id: str | None = None
    group: str | None = None
    group_index: int | None = None
    shadow: str | None = None
    eta: str | None = None
    expires: str | None = None
    retries: int | None = None
    timelimit: tuple[float | None, float | None] | None = None
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    origin: str | None = None
    lang: str | None = None
    ignore_result: bool | None = None
    replaced_task_nesting: int | None = None
    stamped_headers: list[str] | None = None
    stamps: dict[str, Any] | None = None
    # Celery reads these from the body, and as headers would take them, too
    callbacks: None = None
    errbacks: None = None
    chain: None = None
    chord: None = None


class _Embedded(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last part of a message's body: the signatures of the tasks to send after this task.

    Celery would take any other field for an attribute of the task's request, such as its id.
    """

    callbacks: list[dict[str, Any]] | None = None
    errbacks: list[dict[str, Any]] | None = None
    chain: list[dict[str, Any]] | None = None
    chord: dict[str, Any] | None = None


_EMBEDDED = frozenset(_Embedded.__struct_fields__)


def check_headers(given: Any) -> None:
    """Raise for the headers of a message that cannot be run."""
    try:
        headers = msgspec.convert(given, _Headers)
    except msgspec.ValidationError as error:
        raise InvalidMessage(f"headers: {error}; send a Celery message of protocol 2") from error
    for name in (headers.id, headers.root_id, headers.parent_id, headers.group):
        if name is not None and not is_name(name):
            raise InvalidMessage("headers: an id is too long, or has NUL or a lone surrogate")
    if headers.eta is not None:
        due_at(headers.eta)


def due_at(eta: str) -> float:
    """Return the Unix time of a message's `eta`. Raises if it is no time."""
    due = datetime.fromisoformat(eta)
    return (due if due.tzinfo else due.replace(tzinfo=UTC)).timestamp()


def check_body(body: Any, task: str) -> None:
    """Raise unless the body of a message of a task is ``[args, kwargs, embedded]``."""
    if not isinstance(body, list | tuple) or len(body) != 3:
        raise InvalidMessage("the body is not [args, kwargs, embed]")
    arguments, keywords, embedded = body
    if not (isinstance(arguments, list | tuple) and isinstance(keywords, dict) and isinstance(embedded, dict | None)):
        raise InvalidMessage("the body is not [list, mapping, mapping]")
    if embedded and (any(embedded.values()) or not embedded.keys() <= _EMBEDDED):
        try:
            msgspec.convert(embedded, _Embedded)
        except msgspec.ValidationError as error:
            raise InvalidMessage(f"the body's last part: {error}") from error
        _check_signatures(embedded)
    if task != TASK:  # Celery's own tasks send signatures from their arguments
        _check_signatures([arguments, keywords])


def _check_signatures(value: Any) -> None:
    for count, signature in enumerate(_signatures(value), 1):
        if count > MOST_SENT:
            raise InvalidMessage(
                f"the message would have over {MOST_SENT:,} tasks sent; send fewer, or several messages"
            )
        if signature.get("subtask_type") not in _TYPES:
            raise InvalidMessage("a signature's subtask_type is not one that Celery sends")
        for option in ("queue", "exchange", "routing_key"):
            name = signature["options"].get(option)
            if name is not None and not (is_name(name) and name.isprintable() and not name.startswith(_KOMBUS)):
                raise InvalidMessage(f"a signature's {option} is not a queue's name")


def _signatures(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the signatures in a JSON value, at any depth."""
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, dict):
            if isinstance(inner.get("options"), dict) and not inner.keys().isdisjoint(("task", "subtask_type")):
                yield inner
            waiting.extend(inner.values())
        elif isinstance(inner, list | tuple):
            waiting.extend(inner)


def make_sound(raw: Any, queue: Any, *held: Container[str]) -> str:
    """Replace the properties by which kombu handles a message; return its tag, which no `held` message has.

    The message goes back to the list that it came from, whatever it says. Raises if it has no properties, no queue or
    no priority. Raises if it is compressed, or of another content type, for which kombu takes the encoding's name for a
    codec, as "zlib": kombu would unpack it at once, however large it becomes.
    """
    if (raw.get("headers") or {}).get("compression"):
        raise InvalidMessage("compressed messages are refused; send the message without `compression`")
    if raw.get("content-type") not in (JSON, MSGPACK):
        raise InvalidMessage(f"the content type is refused; send {JSON} or {MSGPACK}")
    if not isinstance(queue, str) or not queue:
        raise InvalidMessage("the message has no queue")
    properties = raw["properties"]
    if properties.get("priority") is not None:
        properties["priority"] = min(max(int(properties["priority"]), 0), 9)
    properties["delivery_info"] = {"exchange": "", "routing_key": queue}
    tag = properties.get("delivery_tag")
    if not (isinstance(tag, str) and tag and is_name(tag)) or any(tag in own for own in held):
        tag = properties["delivery_tag"] = new_id()
    return str(tag)


def _decimal(value: Any) -> Decimal:
    """Return a decimal number of a message. Its whole number could take hours to compute, and no thread runs then."""
    number = Decimal(value)
    if abs(number.adjusted()) > MOST_EXPONENT:
        raise InvalidMessage("a decimal number has too large an exponent")
    return number


register_type(Decimal, "decimal", str, _decimal)  # for all JSON that kombu reads in this process
