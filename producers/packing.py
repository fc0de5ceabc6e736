"""From inputs to envelopes: number the items, put bad ones aside, pack the good. Pure: no I/O, so that the sync and the
asyncio client share it."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import msgspec

from producers.errors import InvalidInput
from producers.messages import (
    VERSION,
    Envelope,
    InlineBytes,
    Input,
    Item,
    PathInput,
    Priority,
    TextAndImageInput,
    UrlInput,
    encode,
    new_id,
)
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

#: Items that come at about the same time with the same `deadline_s` share envelopes if their deadlines, put off by at
#: most this part of `deadline_s`, are the same.
DEADLINE_GRAIN = 1 / 64

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

    def items(self, inputs: Iterable[object]) -> Iterator[Weighed]:
        """Yield each good input as an item with its weight in bytes."""
        for value in inputs:
            if (item := self.take(value)) is not None:
                yield item

    def take(self, value: object) -> Weighed | None:
        """Return the next input as an item with its weight; None if it is put aside or passed over.

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
        return item, weight(item.input)

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


def weight(value: Input) -> int:
    """Return about how many bytes an input takes in an envelope."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8"))
    if isinstance(value, InlineBytes):
        return len(value.data)
    if isinstance(value, PathInput | UrlInput):
        return 256
    if isinstance(value, TextAndImageInput):
        return weight(value.text) + weight(value.image)
    return len(msgspec.json.encode(value))  # an object of texts


@dataclass(slots=True)
class Chunk:
    """Gathers items into what one transaction carries: full in number, in bytes or in age, whichever comes first."""

    clock: Callable[[], float] = time.monotonic
    items: list[Weighed] = field(default_factory=list)
    size: int = 0
    started: float = 0.0

    def add(self, item: Weighed) -> bool:
        """Take an item; return whether the chunk is full."""
        now = self.clock()
        if not self.items:
            self.started = now
        self.items.append(item)
        self.size += item[1]
        return now - self.started >= CHUNK_AGE_S or len(self.items) >= CHUNK_ITEMS or self.size >= CHUNK_BYTES

    def empty(self) -> list[Weighed]:
        """Return what was gathered and start anew."""
        gathered, self.items, self.size = self.items, [], 0
        return gathered


def chunks(items: Iterable[Weighed], clock: Callable[[], float] = time.monotonic) -> Iterator[list[Weighed]]:
    """Gather items into chunks; the last one is what is left."""
    chunk = Chunk(clock)
    for item in items:
        if chunk.add(item):
            yield chunk.empty()
    if chunk.items:
        yield chunk.empty()


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


@dataclass(frozen=True, slots=True, eq=False)
class Parcel:
    """What one call wants sent: items of one request for one job."""

    request: Request
    items: Sequence[Weighed]
    job: str
    deadline_at: float | None = None
    durable: bool = True
    tenant: str = ""
    pipeline: bool = False


@dataclass(frozen=True, slots=True)
class Sealed:
    """An envelope ready to go, and what is in it."""

    envelope: NewEnvelope
    items: tuple[Item, ...]

    @property
    def about(self) -> str:
        """What people see of it in Flower: ``64 items, sentiment+topic``."""
        count = len(self.items)
        tasks = dict.fromkeys(task for item in self.items for task in item.tasks)
        return f"{count} item{'' if count == 1 else 's'}, {'+'.join(tasks)}"


def shared_deadline(request: Request, now: float) -> float | None:
    """Return the deadline of a lone item: never early, and late by at most `DEADLINE_GRAIN` of its time."""
    if request.deadline_s is None:
        return None
    grain_s = request.deadline_s * DEADLINE_GRAIN
    return math.ceil((now + request.deadline_s) / grain_s) * grain_s


#: The lanes of those who name no tenant.
ONE_LANE = {"": 0}


def seal(parcels: Iterable[Parcel], now: float, lanes: Mapping[str, int] = ONE_LANE) -> list[Sealed]:
    """Return the envelopes that carry all items of `parcels`, encoded; `lanes` has the lane of each tenant.

    What has tenant, model, priority, deadline and job in common shares envelopes, whichever call it came by. An item is in one
    envelope for every model that its tasks need, under the same `seq`.
    """
    lots: defaultdict[tuple[str, str, str, Priority, float | None, bool, bool], list[Weighed]] = defaultdict(list)
    for parcel in parcels:
        models = parcel.request.models
        for model, tasks in models.items():
            share = parcel.items if len(models) == 1 else [(_part(item, tasks), size) for item, size in parcel.items]
            own = (parcel.request.priority, parcel.deadline_at, parcel.durable, parcel.pipeline)
            lots[parcel.tenant, parcel.job, model, *own] += share
    return [
        sealed(
            Envelope(
                version=VERSION,
                id=new_id(),
                job=job,
                model=model,
                priority=priority,
                queued_at=now,
                items=items,
                deadline_at=deadline_at,
                durable=durable,
                tenant=tenant,
                pipeline=pipeline,
            ),
            lanes[tenant],
        )
        for (tenant, job, model, priority, deadline_at, durable, pipeline), lot in lots.items()
        for items in pack(lot)
    ]


def _part(item: Item, tasks: tuple[str, ...]) -> Item:
    params = {name: value for name, value in item.params.items() if name in tasks}
    return msgspec.structs.replace(item, tasks=tasks, params=params)


def sealed(envelope: Envelope, lane: int) -> Sealed:
    """Return an envelope encoded, for a lane of its model's queues."""
    payload, content_type = encode(envelope)
    row = NewEnvelope(
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
        lane=lane,
    )
    return Sealed(row, envelope.items)
