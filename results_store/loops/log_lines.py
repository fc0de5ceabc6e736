"""Log lines as JSON objects, and the ids that a thread or an asyncio task works on, as fields of its lines.

The objects have ASCII characters only, so that no name of a stranger can move a cursor or forge a line.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

_FIELDS: ContextVar[Mapping[str, Any]] = ContextVar("argosy log fields", default={})  # noqa: B039 - never changed

#: The attributes of every record. Others are the `extra` of a call.
_USUAL = frozenset((*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName"))

#: The types of values that JSON has.
_PLAIN = (str, int, float, bool)


@contextmanager
def about(**fields: Any) -> Iterator[None]:
    """Add these fields to the log lines of this thread or task, inside."""
    before = _FIELDS.set({**_FIELDS.get(), **fields})
    try:
        yield
    finally:
        _FIELDS.reset(before)


class Throttle(logging.Filter):
    """Lets so many lines of a logger pass in a second; the next line says how many were left out. Thread-safe.

    Each line costs a wait for the interpreter's lock, so that a flood of refusals would delay everybody.
    """

    def __init__(self, most_per_s: int = 10) -> None:
        super().__init__()
        self._most = most_per_s
        self._lock = threading.Lock()
        self._second = self._passed = self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is logged."""
        with self._lock:
            if (second := int(record.created)) != self._second:
                self._second, self._passed = second, 0
            if self._passed == self._most:
                self._left_out += 1
                return False
            self._passed += 1
            left_out, self._left_out = self._left_out, 0
        if left_out:
            record.msg, record.args = (
                f"{record.getMessage()} ({left_out:,} lines of this kind were left out before)",
                (),
            )
        return True


class JsonLines(logging.Formatter):
    """A formatter whose records are a JSON object each, on a line of its own, with a traceback as `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record's line."""
        line: dict[str, Any] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "thread": record.threadName,
            "message": record.getMessage(),
        }
        extra = {name: value for name, value in record.__dict__.items() if name not in _USUAL}
        line |= {name: value for name, value in {**_FIELDS.get(), **extra}.items() if name not in line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps({name: _plain(value) for name, value in line.items()})


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, _PLAIN) else str(value)
