"""Publish generated text piece by piece to its readers, over Redis pub/sub. The result is stored like any other."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec

from producers.wire.errors import BrokerUnavailable, Overloaded
from producers.wire.publisher import Publisher, as_unavailable
from producers.wire.queues import text_channel
from results_store.loops.loop import TICK_S, Loop

logger = logging.getLogger(__name__)

#: A text without listeners for this long is not written any further: its reader is gone, not just reconnecting.
DESERTED_S = 5.0

#: A job and the item's number.
Item: TypeAlias = tuple[str, int]

_Piece: TypeAlias = tuple[Item, int, str]


class Streams:
    """Publish pieces, in a thread of its own. `on_deserted` is called for an item without listeners."""

    def __init__(self, publisher: Publisher, on_deserted: Callable[[Item], object]) -> None:
        self._publisher = publisher
        self._on_deserted = on_deserted
        self._pieces: queue.SimpleQueue[_Piece | None] = queue.SimpleQueue()
        self._alone_since: dict[Item, float] = {}
        self.loop = Loop("streams", self._turn)

    def start(self) -> None:
        self.loop.start()

    def stop(self) -> None:
        """Publish the waiting pieces, and return when the thread has ended."""
        self._pieces.put(None)
        self.loop.join()

    def teller(self, job: str, seq: int) -> Callable[[int, str], object]:
        """Return a function that publishes pieces of an item's text."""
        return lambda at, text: self._pieces.put(((job, seq), at, text))

    def _turn(self) -> bool:
        try:
            piece = self._pieces.get(timeout=TICK_S)
        except queue.Empty:
            return True
        pieces = []
        while piece is not None:
            pieces.append(piece)
            if self._pieces.empty() or len(pieces) == 256:
                self._publish(pieces)
                return True
            piece = self._pieces.get()
        self._publish(pieces)
        return False

    def _publish(self, pieces: Sequence[_Piece]) -> None:
        redis = self._publisher.redis
        try:
            with as_unavailable(redis), redis.pipeline(transaction=False) as pipeline:
                for (job, seq), at, text in pieces:
                    pipeline.publish(text_channel(job, seq), msgspec.json.encode((at, text)))
                listeners = pipeline.execute()
        except (BrokerUnavailable, Overloaded) as error:
            logger.warning(
                "%s; %d pieces of text were not sent; their readers get them with the result", error, len(pieces)
            )
            return
        for (item, _, _), count in zip(pieces, listeners, strict=True):
            self._note(item, heard=bool(count))

    def _note(self, item: Item, *, heard: bool) -> None:
        if heard:
            self._alone_since.pop(item, None)
            return
        now = time.monotonic()
        if now - self._alone_since.setdefault(item, now) >= DESERTED_S:
            del self._alone_since[item]
            self._on_deserted(item)
        elif len(self._alone_since) > 1024:  # of items that have ended
            self._alone_since = {key: since for key, since in self._alone_since.items() if now - since < DESERTED_S}
