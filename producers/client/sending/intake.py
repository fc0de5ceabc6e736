"""The inputs of a submission as they arrive: numbered, checked, and gathered into chunks. Pure: no I/O."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from producers.client.request import NewItem, Request
from producers.wire.errors import InvalidInput
from producers.wire.messages import Item
from producers.wire.packing import ENVELOPE_ITEMS, weight

#: One outbox transaction and one pipeline carry a chunk: some 64 full envelopes. Bytes are bounded because of images.
#: The age is checked at each item, so that the items of a slow source are sent meanwhile.
CHUNK_ITEMS = 64 * ENVELOPE_ITEMS
CHUNK_BYTES = 16 * 1024 * 1024
CHUNK_AGE_S = 1.0

#: The values of a column that are converted at a time.
CONVERTED = 2048

#: The number of rejected inputs that a job keeps, with their errors; others are only counted.
REJECTED_KEPT = 1_000

OnError = Literal["raise", "skip"]


@dataclass(frozen=True, slots=True)
class Rejected:
    """A rejected input: its place among the inputs, its key, and the error."""

    seq: int
    key: str | None
    error: InvalidInput


@dataclass(slots=True)
class Intake:
    """Number and check the inputs of a submission; raise or collect the errors of invalid inputs.

    The first `skip` valid items are left out: an earlier run of the submission had submitted them. The `seq` of an item
    is its place among all inputs, also the rejected and skipped ones, multiplied by `span`, the count of numbers per
    input.
    """

    request: Request
    on_error: OnError = "raise"
    skip: int = 0
    seen: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    rejected_count: int = 0
    on_rejected: Callable[[Rejected], object] | None = None
    on_skipped: Callable[[Item], object] | None = None
    span: int = 1
    _takes_texts: bool = field(init=False)

    def __post_init__(self) -> None:
        self._takes_texts = self.request.takes_texts

    def take(self, value: object) -> Item | None:
        """Return the next input as an item, or None if it is rejected or skipped.

        An InvalidInput in place of an input is the error of its source, which could not read the row.
        """
        seq = self.seen
        self.seen += 1
        try:
            item = self._text(seq, value) or self._item(seq, value)
        except InvalidInput as error:
            self._reject(seq, value, error)
            if self.on_error == "raise":
                raise
            return None
        if self.skip:
            self.skip -= 1
            if self.on_skipped is not None:
                self.on_skipped(item)
            return None
        return item

    def _text(self, seq: int, value: object) -> Item | None:
        """Return a right text as an item, without the checks of other inputs: most inputs are texts."""
        if not self._takes_texts:
            return None
        if type(value) is str:
            return self.request.text(seq * self.span, value)
        if type(value) is NewItem and type(value.input) is str and not value.params:
            key = value.key
            if key is None or (type(key) is str and key.isascii()):
                return self.request.text(seq * self.span, value.input, key)
        return None

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


def values_of(inputs: Iterable[object]) -> Iterable[object]:
    """Return inputs, those in an array of NumPy's texts or in an Arrow column as Python's own, many at a time."""
    kind = getattr(getattr(inputs, "dtype", None), "kind", "")
    if kind == "U" and getattr(inputs, "ndim", 0) == 1:
        return _converted(inputs, "tolist")
    if hasattr(inputs, "to_pylist") and hasattr(inputs, "type"):  # an Array or a ChunkedArray
        return _converted(inputs, "to_pylist")
    return inputs


def _converted(column: Any, method: str) -> Iterator[object]:
    for begin in range(0, len(column), CONVERTED):
        yield from getattr(column[begin : begin + CONVERTED], method)()


@dataclass(slots=True)
class Chunk:
    """Gather items into a chunk, which is full by number, bytes or age, whichever comes first."""

    clock: Callable[[], float] = time.monotonic
    items: list[Item] = field(default_factory=list)
    size: int = 0
    started: float = 0.0

    def add(self, item: Item) -> bool:
        """Add an item; return whether the chunk is full."""
        now = self.clock()
        if not self.items:
            self.started = now
        self.items.append(item)
        self.size += weight(item.input)
        return now - self.started >= CHUNK_AGE_S or len(self.items) >= CHUNK_ITEMS or self.size >= CHUNK_BYTES

    def empty(self) -> list[Item]:
        """Return the gathered items and begin a new chunk."""
        gathered, self.items, self.size = self.items, [], 0
        return gathered
