"""The messages that are not run: logged, and noted in Redis for operators. Their content is not shown."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from time import time
from typing import Any, TypeAlias

from kombu.asynchronous import get_event_loop
from kombu.utils.json import dumps
from redis.exceptions import RedisError

from producers.wire.errors import InvalidMessage, without_text
from producers.wire.queues import RefusedMessage, note_refused
from results_store.loops.log_lines import Throttle

logger = logging.getLogger(__name__)
logger.addFilter(Throttle())  # `argosy dead` lists them

#: A message that is not run: its bytes, what was read of them, its queue, and the error.
Refused: TypeAlias = tuple[bytes, Any, object, BaseException]

#: The most characters of a cause, a task's name and an id of a refused message that are kept.
KEPT_CHARACTERS = 200

#: Refused messages of polls are noted for operators within these seconds, or so many together. A worker that is killed
#: meanwhile has logged them.
NOTED_WITHIN_S, NOTED_TOGETHER = 0.05, 100

#: Errors whose texts name fields and types. The texts of others may hold a part of the message.
_NAMING = (InvalidMessage, AttributeError, TypeError)


class RefusedMessages:
    """Logs and notes refused messages. `connected` gives a client of Redis."""

    def __init__(self, connected: Callable[[], AbstractContextManager[Any]]) -> None:
        self._connected = connected
        self._unnoted: list[RefusedMessage] = []

    def note(self, *messages: Refused) -> None:
        """Log messages, and note them. Thread-safe."""
        self._note(_logged(messages))

    def note_soon(self, messages: Sequence[Refused]) -> None:
        """Log messages, and note them with those that are refused within a moment. For the consumer's thread."""
        self._unnoted += _logged(messages)
        hub = get_event_loop()
        if hub is None or len(self._unnoted) >= NOTED_TOGETHER:
            self.flush()
        elif len(self._unnoted) == len(messages):  # the first since the last note
            hub.call_later(NOTED_WITHIN_S, self.flush)

    def flush(self) -> None:
        """Note the messages that are not noted yet."""
        refused, self._unnoted = self._unnoted, []
        if refused:
            self._note(refused)

    def _note(self, refused: Sequence[RefusedMessage]) -> None:
        with suppress(RedisError, OSError), self._connected() as client:
            note_refused(client, *refused)


def _logged(messages: Sequence[Refused]) -> list[RefusedMessage]:
    """Log refused messages, and return them in the form in which operators see them."""
    refused = [
        RefusedMessage(
            at=time(),
            queue=_shown(queue),
            cause=cause_of(error),
            sha256=hashlib.sha256(data).hexdigest(),
            bytes=len(data),
            **_named(raw),
        )
        for data, raw, queue, error in messages
    ]
    for one in refused:
        logger.warning(
            "refused a message of %s: %s (task %r, id %r, %d bytes, sha256 %s)",
            one.queue, one.cause, one.task, one.id, one.bytes, one.sha256,
        )  # fmt: skip
    return refused


def encoded(message: Any) -> bytes:
    """Return the bytes of a message that was read, for its digest."""
    try:
        return bytes(dumps(message), "utf-8")
    except Exception:  # noqa: BLE001 - as deeply nested as it can be read
        return b""


def cause_of(error: BaseException) -> str:
    """Return an error as operators see it."""
    return _shown(f"{type(error).__name__}: {error}" if isinstance(error, _NAMING) else without_text(error))


def _named(raw: Any) -> dict[str, str]:
    headers = raw.get("headers") if isinstance(raw, dict) else None
    found = headers if isinstance(headers, dict) else {}
    return {name: _shown(found.get(name, "")) for name in ("task", "id")}


def _shown(text: object) -> str:
    return text[:KEPT_CHARACTERS].encode("utf-8", "replace").decode() if isinstance(text, str) else ""
