"""A text that is read while it is written: `Client.stream` and `AsyncClient.stream`.

Pieces arrive over Redis, which may lose some; each names its place in the text. Missing pieces follow at the end, with
the result, which is stored like any other. So all pieces together are the whole text. If a worker dies, another
one begins the answer anew; should it write another text, the stream ends with StreamRestarted.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from producers.client.fleet_link import FleetLink, OfThisProcess
from producers.client.group_commit import Promise
from producers.client.pending_results import PendingResult
from producers.client.runtimes import Queue, iterate, run
from producers.wire.errors import StreamRestarted
from producers.wire.queues import read, text_channel

if TYPE_CHECKING:
    from producers.client.async_handles import AsyncHandle
    from producers.client.notices import Listener

#: The greatest wait of a submission for its subscription. Without a subscription the whole text arrives at the end.
SUBSCRIBED_S = 2.0


class TextPieces:
    """Join the pieces of a text, whether some are missing or arrive twice. Pieces of another text are left out."""

    def __init__(self) -> None:
        self.text = ""
        self._differs = False

    def take(self, data: bytes) -> str:
        """Return the new text of a piece; empty while a piece before it is missing, or if the piece is unreadable."""
        at, text = read(data, tuple[int, str]) or (-1, "")
        if not 0 <= at <= len(self.text):
            return ""
        self._differs |= not text.startswith(self.text[at : at + len(text)])
        if self._differs:
            return ""
        new = text[len(self.text) - at :]
        self.text += new
        return new

    def rest(self, whole: str) -> str:
        """Return the part of the whole text that has not arrived. Raises StreamRestarted if it began otherwise."""
        if not whole.startswith(self.text):
            raise StreamRestarted(
                "the answer was begun anew and is another text than its pieces; the whole answer stands in `result`"
            )
        return whole[len(self.text) :]


class Subscription:
    """Hear an item's pieces, from before the item is submitted; `heard` is called with each. `close` it."""

    def __init__(self, link: FleetLink, pending: PendingResult, heard: Callable[[bytes], object]) -> None:
        self._link = link
        self._channel = text_channel(pending.job, pending.seq)
        self._heard = heard
        self._live = threading.Event()
        self._listener: Listener | None = None
        self._closed = False
        self._lock = threading.Lock()

    def open(self) -> None:
        """Return when pieces are heard, or after SUBSCRIBED_S. Does nothing once it is closed."""
        with self._lock:
            if self._closed:
                return
            self._listener = self._link.listener
            self._listener.hear(self._channel, self._heard, self._live)
        self._live.wait(SUBSCRIBED_S)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._listener is not None:
                self._listener.unhear(self._channel)

    def drop(self) -> None:
        """Close it soon, and wait for nothing: its reader was collected as garbage."""
        if self._listener is not None:
            self._listener.drop(self._channel)


class AsyncTextStream(OfThisProcess):
    """`TextStream` for asyncio: iterate with ``async for``; end it with `aclose` or ``async with``."""

    def __init__(self, link: FleetLink) -> None:
        self.result: Mapping[str, Any] | None = None
        self._link, self._life = link, link.life
        self._process = link.process
        self._events = link.runtime.queue()
        self._pieces = TextPieces()
        self._handle: AsyncHandle | None = None
        self._cancelled = False
        self._subscription: Subscription | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def subscribe(self, pending: PendingResult) -> None:
        self._subscription = Subscription(self._link, pending, self._events.put_nowait)
        weakref.finalize(self, self._subscription.drop).atexit = False  # if nobody iterates
        await self._link.runtime.call(self._subscription.open)

    def follow(self, handle: AsyncHandle) -> Self:
        """Wait for the result of this submitted item."""
        self._handle = handle
        promise = self._link.runtime.promise()
        promise.add_done_callback(partial(_ended, self._events))
        handle.tell(promise)
        return self

    async def __aiter__(self) -> AsyncIterator[str]:
        assert self._handle is not None, "followed where it was made"
        if self.result is not None:
            return
        self._link.refuse_in_child(self._process, "text stream", "read it there")
        try:
            while (data := await self._link.runtime.take(self._events)) is not None:
                if piece := self._pieces.take(data):
                    yield piece
            self.result = whole = await self._handle.result()
            if rest := self._pieces.rest(whole["text"]):
                yield rest
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Cancel an unfinished item, and stop listening. Call it again if it was cancelled itself."""
        if self.result is None and self._handle is not None and not self._cancelled:
            await self._handle.cancel()
            self._cancelled = True
        if self._subscription is not None:
            await self._link.runtime.call(self._subscription.close)
            self._subscription = None


def _ended(events: Queue, promise: Promise) -> None:
    """End the events of a stream. The promise does not hold the stream, which nobody else may have any more."""
    if not promise.cancelled():
        promise.exception()  # marked as read: the handle raises it again
    events.put_nowait(None)


class TextStream(OfThisProcess):
    """The pieces of an answer. Iterate over them once; then `result` is the whole answer.

    Leaving the iteration early cancels the item. Iterating raises the errors of `Handle.result`, and StreamRestarted.
    """

    def __init__(self, stream: AsyncTextStream) -> None:
        self._stream = stream

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def result(self) -> Mapping[str, Any] | None:
        """The whole answer, once it is there."""
        return self._stream.result

    def __iter__(self) -> Iterator[str]:
        return iterate(aiter(self._stream))

    def close(self) -> None:
        """Stop listening, and cancel an unfinished item."""
        run(self._stream.aclose())
