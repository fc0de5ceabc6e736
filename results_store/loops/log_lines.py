"""Log lines as JSON objects, and the ids that a thread or an asyncio task works on, as fields of its lines.

The objects have ASCII characters only, so that no name of a stranger can move a cursor or forge a line.
"""

from __future__ import annotations

import json
import logging
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
