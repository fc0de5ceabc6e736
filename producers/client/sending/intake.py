"""The inputs of a submission as they come: numbered, checked, and gathered into chunks. Pure: no I/O."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from producers.client.request import NewItem, Request
from producers.wire.errors import InvalidInput
from producers.wire.messages import Item
from producers.wire.packing import ENVELOPE_ITEMS, weight

#: A chunk is what one outbox transaction and one pipeline carry: some 64 full envelopes, bounded in bytes for the
#: sake of images, and in age, looked at whenever an item comes, so that a slow source's items go out as it goes on.
CHUNK_ITEMS = 64 * ENVELOPE_ITEMS
CHUNK_BYTES = 16 * 1024 * 1024
CHUNK_AGE_S = 1.0

#: So many rejected rows are kept on a job, with their errors; the rest is only counted.
REJECTED_KEPT = 1_000

OnError = Literal["raise", "skip"]


@dataclass(frozen=True, slots=True)
class Rejected:
    """An input that was not accepted: its place among the inputs, its key, and why."""

    seq: int
    key: str | None
    error: InvalidInput


@dataclass(slots=True)
class Intake:
    """The items of one submission as they come: numbered, checked, the bad ones raised or put aside.

    `skip` valid items are passed over at the start: those which an earlier run of the same submission already
    had accepted. Items keep their place among the inputs as `seq`, whatever is rejected or skipped before them; with
    `span`, the first of so many numbers that each input has.
    """

    request: Request
    on_error: OnError = "raise"
    skip: int = 0
    seen: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    rejected_count: int = 0
    on_rejected: Callable[[Rejected], object] | None = None
    span: int = 1

    def take(self, value: object) -> Item | None:
        """Return the next input as an item; None if it is put aside or passed over.

        An InvalidInput in place of an input stands for a row that its source could not read.
        """
        seq = self.seen
        self.seen += 1
        try:
            item = self._item(seq, value)
        except InvalidInput as error:
            self._reject(seq, value, error)
            if self.on_error == "raise":
                raise
            return None
        if self.skip:
            self.skip -= 1
            return None
        return item

    def _item(self, seq: int, value: object) -> Item:
        if isinstance(value, InvalidInput):
            raise value
        origin = value.origin if isinstance(value, NewItem) else None
        return self.request.item(seq * self.span, value, field=origin or f"inputs[{seq}]")

    def _reject(self, seq: int, value: object, error: InvalidInput) -> None:
        self.rejected_count += 1
        rejected = Rejected(seq, value.key if isinstance(value, NewItem) else None, error)
        if len(self.rejected) < REJECTED_KEPT:
            self.rejected.append(rejected)
        if self.on_rejected is not None:
            self.on_rejected(rejected)


@dataclass(slots=True)
class Chunk:
    """Gathers items into what one transaction carries: full in number, in bytes or in age, whichever comes first."""

    clock: Callable[[], float] = time.monotonic
    items: list[Item] = field(default_factory=list)
    size: int = 0
    started: float = 0.0

    def add(self, item: Item) -> bool:
        """Take an item; return whether the chunk is full."""
        now = self.clock()
        if not self.items:
            self.started = now
        self.items.append(item)
        self.size += weight(item.input)
        return now - self.started >= CHUNK_AGE_S or len(self.items) >= CHUNK_ITEMS or self.size >= CHUNK_BYTES

    def empty(self) -> list[Item]:
        """Return what was gathered and start anew."""
        gathered, self.items, self.size = self.items, [], 0
        return gathered
