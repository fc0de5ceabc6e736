"""How the client sends many: chunk after chunk, one under way while the next is gathered. `async_sending` is the same, awaited."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeAlias

from producers.client.sending.full_fleet import Patience
from producers.client.sending.intake import Intake, chunks
from producers.client.sending.outbox import Outbox
from producers.client.sending.submission import Sent, Submission
from producers.wire.errors import Overloaded
from producers.wire.messages import Item

_Sent: TypeAlias = Sent[Future[None]]


@dataclass(frozen=True, slots=True)
class Sending:
    """Sends the items of one submission; each chunk waits `limit_s` at most for a full fleet."""

    outbox: Outbox
    submission: Submission
    limit_s: float

    def all_of(self, inputs: Iterable[object], intake: Intake) -> None:
        """Return once all of them are accepted. Raises what `submit_many` raises."""
        sent: _Sent | None = None
        try:
            for chunk in chunks(intake.items(inputs)):
                portion = self.outbox.admission.portion(self.submission.tenant)
                for start in range(0, len(chunk), portion):
                    before, sent = sent, None
                    self._settle(before)
                    items = chunk[start : start + portion]
                    sent = Sent(items, Patience(self.limit_s), self._put(items))
        except Exception:  # an input's: what was sent before it counts all the same
            self._settle(sent)
            raise
        except BaseException:  # interrupted by the user: not sent any more, if it was not yet
            if sent is not None:
                sent.promise.cancel()
            raise
        self._settle(sent)

    def _put(self, items: Sequence[Item]) -> Future[None]:
        promise: Future[None] = Future()
        try:
            self.outbox.put(self.submission.order(items, promise))
        except Overloaded as refusal:
            promise.set_exception(refusal)
        return promise

    def _settle(self, sent: _Sent | None) -> None:
        """Wait until what was sent is accepted, sending it again while the fleet is full."""
        if sent is None:
            return
        while True:
            try:
                sent.promise.result()
                break
            except Overloaded as refusal:
                time.sleep(sent.patience.wait_s(refusal))
                sent.promise = self._put(sent.items)
            except BaseException:
                sent.promise.cancel()
                raise
        self.submission.accepted(sent.items)
