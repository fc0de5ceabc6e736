"""How the asyncio client sends many: chunk after chunk, one under way while the next is gathered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from producers.client.sending.full_fleet import Patience
from producers.client.sending.intake import Chunk, Intake
from producers.client.sending.outbox import Outbox
from producers.client.sending.submission import Sent, Submission
from producers.wire.errors import Overloaded
from producers.wire.messages import Item

#: After so many inputs the loop's other work comes in between.
PACE = 128

_Sent: TypeAlias = Sent["asyncio.Future[None]"]


@dataclass(frozen=True, slots=True)
class Sending:
    """Sends the items of one submission; each chunk waits `limit_s` at most for a full fleet."""

    outbox: Outbox
    submission: Submission
    limit_s: float

    async def all_of(self, inputs: Iterable[object] | AsyncIterable[object], intake: Intake) -> None:
        """Return once all of them are accepted. Raises what `submit_many` raises."""
        sent: _Sent | None = None
        chunk = Chunk()
        try:
            async for value in _paced(inputs):
                item = intake.take(value)
                if item is not None and chunk.add(item):
                    before, sent = sent, None
                    sent = await self._send(chunk.empty(), before)
            if chunk.items:
                before, sent = sent, None
                sent = await self._send(chunk.empty(), before)
        except Exception:  # an input's: what was sent before it counts all the same
            await self._settle(sent)
            raise
        except BaseException:  # cancelled: not sent any more, if it was not yet
            if sent is not None:
                sent.promise.cancel()
            raise
        await self._settle(sent)

    async def _send(self, chunk: Sequence[Item], before: _Sent | None) -> _Sent | None:
        """Send a chunk in the portions that the fleet admits, each once the one before is accepted; return the last."""
        portion = self.outbox.admission.portion(self.submission.tenant)
        for start in range(0, len(chunk), portion):
            await self._settle(before)
            items = chunk[start : start + portion]
            before = Sent(items, Patience(self.limit_s), self._put(items))
        return before

    def _put(self, items: Sequence[Item]) -> asyncio.Future[None]:
        promise: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            self.outbox.put(self.submission.order(items, promise))
        except Overloaded as refusal:
            promise.set_exception(refusal)
        return promise

    async def _settle(self, sent: _Sent | None) -> None:
        """Wait until what was sent is accepted, sending it again while the fleet is full."""
        if sent is None:
            return
        while True:
            try:
                await sent.promise
                break
            except Overloaded as refusal:
                await asyncio.sleep(sent.patience.wait_s(refusal))
                sent.promise = self._put(sent.items)
        self.submission.accepted(sent.items)


async def _paced(inputs: Iterable[object] | AsyncIterable[object]) -> AsyncIterator[object]:
    """Yield inputs from either kind of iterable, letting others run now and then."""
    count = 0
    if isinstance(inputs, AsyncIterable):
        async for value in inputs:
            yield value
            count += 1
            if count % PACE == 0:
                await asyncio.sleep(0)
        return
    for value in inputs:
        yield value
        count += 1
        if count % PACE == 0:
            await asyncio.sleep(0)
