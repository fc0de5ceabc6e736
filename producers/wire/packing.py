"""Items packed into envelopes, and an envelope encoded as the row and the message that carry it. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from producers.wire.messages import Envelope, Item, encode
from results_store.records import NewEnvelope

#: An envelope holds at most this many items and about this many bytes of input; a bigger input travels alone.
ENVELOPE_ITEMS = 64
ENVELOPE_BYTES = 256 * 1024

#: An item with its weight: about how many bytes it takes in an envelope.
Weighed: TypeAlias = tuple[Item, int]


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
