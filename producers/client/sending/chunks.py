"""Sending many items: chunk after chunk; a chunk is under way while the next is filled."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Sequence
from dataclasses import dataclass, field

from producers.client.group_commit import Promise
from producers.client.runtimes import Runtime
from producers.client.sending.full_fleet import OverloadWait
from producers.client.sending.intake import Chunk, Intake, values_of
from producers.client.sending.outbox import Outbox
from producers.client.sending.submission import Submission
from producers.wire.errors import Overloaded
from producers.wire.messages import Item

#: The number of inputs after which the event loop runs other work.
PACE = 128


@dataclass(slots=True)
class SentChunk:
    """Items under way: the promise that they are accepted, and the patience with which they are sent again."""

    items: Sequence[Item]
    patience: OverloadWait
    promise: Promise


@dataclass(slots=True)
class ChunkSender:
    """Send the items of a submission. Each chunk waits at most `limit_s` for a full fleet."""

    runtime: Runtime
    outbox: Outbox
    submission: Submission
    intake: Intake
    limit_s: float
    _chunk: Chunk = field(default_factory=Chunk)
    _sent: SentChunk | None = None

    async def all_of(self, inputs: Iterable[object] | AsyncIterable[object]) -> None:
        """Return once all items are accepted. Raises the errors of `submit_many`."""
        try:
            if isinstance(inputs, AsyncIterable):
                async for value in inputs:
                    await self._take((value,))
            else:
                await self._take(values_of(inputs))
            await self._send(self._chunk.empty())
        except Exception:  # the error of an input; chunks before it are still accepted
            await self._settle()
            raise
        except BaseException:  # interrupted or cancelled: a chunk that is not sent yet is withdrawn
            if self._sent is not None:
                self._sent.promise.cancel()
            raise
        await self._settle()

    async def _take(self, inputs: Iterable[object]) -> None:
        """Gather inputs, and send each full chunk."""
        intake, chunk = self.intake, self._chunk
        for value in inputs:
            item = intake.take(value)
            if item is not None and chunk.add(item):
                await self._send(chunk.empty())
            if not intake.seen % PACE:
                await self.runtime.checkpoint()

    async def _send(self, chunk: Sequence[Item]) -> None:
        """Send a chunk in the portions that the fleet admits. Each is sent once the portion before is accepted."""
        portion = self.outbox.admission.portion(self.submission.tenant)
        for start in range(0, len(chunk), portion):
            await self._settle()
            items = chunk[start : start + portion]
            self._sent = SentChunk(items, OverloadWait(self.limit_s), self._put(items))

    def _put(self, items: Sequence[Item]) -> Promise:
        promise = self.runtime.promise()
        try:
            self.outbox.put(self.submission.order(items, promise))
        except Overloaded as refusal:
            promise.set_exception(refusal)
        return promise

    async def _settle(self) -> None:
        """Wait until the sent items are accepted. Send them again while the fleet is full."""
        sent, self._sent = self._sent, None
        if sent is None:
            return
        while True:
            try:
                await self.runtime.outcome(sent.promise)
                break
            except Overloaded as refusal:
                await self.runtime.sleep(sent.patience.wait_s(refusal))
                sent.promise = self._put(sent.items)
            except BaseException:
                sent.promise.cancel()
                raise
        self.submission.accepted(sent.items)
