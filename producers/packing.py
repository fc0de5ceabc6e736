"""From inputs to envelopes: number the items, put bad ones aside, pack the good. Pure: no I/O, so that the sync and the
asyncio client share it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import msgspec

from producers.errors import InvalidInput
from producers.messages import VERSION, Envelope, InlineBytes, Input, Item, encode, new_id
from producers.request import NewItem, Request
from results_store.records import NewEnvelope

#: An envelope holds at most this many items and about this many bytes of input; a bigger input travels alone.
ENVELOPE_ITEMS = 64
ENVELOPE_BYTES = 256 * 1024

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


#: What the producers make of one input: an item with the bytes it weighs.
Weighed: TypeAlias = tuple[Item, int]


@dataclass(slots=True)
class Intake:
    """The items of one submission as they come: numbered, checked, the bad ones raised or put aside.

    `skip` valid items are passed over at the start: those which an earlier run of the same submission already
    had accepted. Items keep their place among the inputs as `seq`, whatever is rejected or skipped before them.
    """

    request: Request
    on_error: OnError = "raise"
    skip: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    rejected_count: int = 0

    def items(self, inputs: Iterable[object]) -> Iterator[Weighed]:
        """Yield each good input as an item with its weight in bytes.

        An InvalidInput among the inputs stands for a row that its source could not read.
        """
        passed = 0
        for seq, value in enumerate(inputs):
            try:
                item = self._item(seq, value)
            except InvalidInput as error:
                if self.on_error == "raise":
                    raise
                self._reject(seq, value, error)
                continue
            passed += 1
            if passed > self.skip:
                yield item, weight(item.input)

    def _item(self, seq: int, value: object) -> Item:
        if isinstance(value, InvalidInput):
            raise value
        origin = value.origin if isinstance(value, NewItem) else None
        return self.request.item(seq, value, field=origin or f"inputs[{seq}]")

    def _reject(self, seq: int, value: object, error: InvalidInput) -> None:
        self.rejected_count += 1
        if len(self.rejected) < REJECTED_KEPT:
            key = value.key if isinstance(value, NewItem) else None
            self.rejected.append(Rejected(seq, key, error))


def weight(value: Input) -> int:
    """Return about how many bytes an input takes in an envelope."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8"))
    if isinstance(value, InlineBytes):
        return len(value.data)
    return 256  # a path or a URL


def chunks(items: Iterable[Weighed], clock: Callable[[], float] = time.monotonic) -> Iterator[list[Weighed]]:
    """Gather items into what one transaction carries: full in number, in bytes or in age, whichever comes first."""
    chunk: list[Weighed] = []
    size = 0
    started = 0.0
    for item in items:
        if not chunk:
            started = clock()
        chunk.append(item)
        size += item[1]
        if len(chunk) >= CHUNK_ITEMS or size >= CHUNK_BYTES or clock() - started >= CHUNK_AGE_S:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def pack(items: Iterable[Weighed]) -> Iterator[tuple[Item, ...]]:
    """Group items, in their order, into as few envelopes as the limits allow."""
    group: list[Item] = []
    size = 0
    for item, item_bytes in items:
        if group and (len(group) >= ENVELOPE_ITEMS or size + item_bytes > ENVELOPE_BYTES):
            yield tuple(group)
            group, size = [], 0
        group.append(item)
        size += item_bytes
    if group:
        yield tuple(group)


def envelopes(
    request: Request, chunk: Sequence[Weighed], *, job: str, now: float, deadline_at: float | None
) -> list[NewEnvelope]:
    """Return a chunk's envelopes, encoded: each item once for every model that its tasks need, under the same `seq`."""
    sealed: list[NewEnvelope] = []
    for model, tasks in request.models.items():
        share = chunk if len(request.models) == 1 else [(_part(item, tasks), size) for item, size in chunk]
        sealed += (
            _seal(
                Envelope(
                    version=VERSION,
                    id=new_id(),
                    job=job,
                    model=model,
                    priority=request.priority,
                    queued_at=now,
                    items=items,
                    deadline_at=deadline_at,
                )
            )
            for items in pack(share)
        )
    return sealed


def _part(item: Item, tasks: tuple[str, ...]) -> Item:
    params = {name: value for name, value in item.params.items() if name in tasks}
    return msgspec.structs.replace(item, tasks=tasks, params=params)


def _seal(envelope: Envelope) -> NewEnvelope:
    payload, content_type = encode(envelope)
    return NewEnvelope(
        id=envelope.id,
        job=envelope.job,
        model=envelope.model,
        priority=int(envelope.priority),
        items=len(envelope.items),
        results=envelope.results,
        payload=payload,
        content_type=content_type,
        created_at=envelope.queued_at,
        deadline_at=envelope.deadline_at,
    )
