"""Responses: JSON for any text, JSON lines and events. Each holds only a bounded amount for a slow reader."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from results_store.sql.columns import json_of

#: Lines sent together.
LINES = 256


def encoded(value: Any) -> bytes:
    """Return JSON. Half of a surrogate pair, which JSON permits but UTF-8 does not, becomes U+FFFD.

    A number that is not finite becomes null: one odd row must not cost the answer with all others.
    """
    text = json_of(value)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode("utf-8")


class Json(Response):
    """A JSON body."""

    media_type = "application/json"

    def __init__(
        self,
        content: Any,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
    ) -> None:
        super().__init__(content, status_code, headers, media_type)

    def render(self, content: Any) -> bytes:
        return encoded(content)


class JsonLines(StreamingResponse):
    """A JSON value per line, sent as the values come. A slow caller slows the reading down."""

    media_type = "application/jsonl"

    def __init__(self, values: AsyncIterator[Any], status_code: int = 200) -> None:
        super().__init__(_lines(values), status_code)


async def _lines(values: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    gathered: list[bytes] = []
    async for value in values:
        gathered.append(encoded(value) + b"\n")
        if len(gathered) >= LINES:
            yield b"".join(gathered)
            gathered.clear()
    if gathered:
        yield b"".join(gathered)


class Events(StreamingResponse):
    """Server-sent events. `ended` is called once nothing more is sent, also if the caller left before the first one."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[bytes], status_code: int = 200, *, ended: Callable[[], object] = lambda: None
    ) -> None:
        super().__init__(events, status_code, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()


def event(name: str | None, value: Any) -> bytes:
    """Return an event, with its name if it has one."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + encoded(value) + b"\n\n"
