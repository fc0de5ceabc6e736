"""Orders: the items of a call, to be sent. Orders that are sent together share envelopes. Pure: no I/O."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from producers.client.group_commit import Promise
from producers.client.pending_results import PendingResult
from producers.client.request import Request
from producers.wire.messages import VERSION, Envelope, Item, Priority, new_id
from producers.wire.packing import pack
from producers.wire.tracing.spans import TraceContext
from results_store.records import NewJob

#: Lone items with the same `deadline_s` that are submitted at about the same time share envelopes, because their
#: deadlines are rounded up to multiples of this part of `deadline_s`.
DEADLINE_GRAIN = 1 / 64

#: The least multiple: clocks are no finer.
FINEST_S = 1e-6


@dataclass(slots=True, eq=False)
class Order:
    """Items of a request for a job, and the promise that they are accepted.

    `deadline_at` is monotonic. A lone item has `pending`, which awaits its results, and `size`, its approximate bytes
    while it waits. The outbox creates `new_job` in the same transaction. `expected_rows` is the number of rows that the
    job must have before, and `fingerprint` that of all rows with these. `trace` is the context of the caller's span.
    """

    request: Request
    items: Sequence[Item]
    job: str
    promise: Promise
    deadline_at: float | None = None
    durable: bool = True
    tenant: str = ""
    pipeline: bool = False
    pending: PendingResult | None = None
    size: int = 0
    new_job: NewJob | None = None
    expected_rows: int | None = None
    fingerprint: str | None = None
    trace: TraceContext | None = None


def shared_deadline(request: Request, now: float) -> float | None:
    """Return a lone item's deadline, by the clock of `now`: never early, late by `DEADLINE_GRAIN` of its time."""
    if request.deadline_s is None:
        return None
    grain_s = max(request.deadline_s * DEADLINE_GRAIN, FINEST_S)
    return math.ceil((now + request.deadline_s) / grain_s) * grain_s


def envelopes_of(
    orders: Iterable[Order], now: float, steady: float, in_columns: Mapping[str, int] | None = None
) -> Iterator[Envelope]:
    """Yield the envelopes that carry all items of `orders`. It is `now` (Unix), and `steady` on the monotonic clock.

    Items with the same tenant, model, priority, deadline and job share envelopes, whichever call submitted them. An
    item is in one envelope for every model that its tasks need, under the same `seq`. `in_columns` is, by model, the
    most items of an envelope that may be in columns.
    """
    lots: defaultdict[tuple[str, str, str, Priority, float | None, bool, bool, int], list[Item]] = defaultdict(list)
    for order in orders:
        models = order.request.models
        for model, tasks in models.items():
            share = order.items if len(models) == 1 else [_part(item, tasks) for item in order.items]
            most = _in_columns(order, tasks, in_columns.get(model, 0) if in_columns else 0)
            own = (order.request.priority, order.deadline_at, order.durable, order.pipeline, most)
            lots[order.tenant, order.job, model, *own] += share
    for (tenant, job, model, priority, deadline_at, durable, pipeline, most), lot in lots.items():
        for items in pack(lot, most):
            yield Envelope(
                version=VERSION,
                id=new_id(),
                job=job,
                model=model,
                priority=priority,
                queued_at=now,
                items=items,
                deadline_at=None if deadline_at is None else now + (deadline_at - steady),
                durable=durable,
                tenant=tenant,
                pipeline=pipeline,
            )


def _in_columns(order: Order, tasks: Sequence[str], most: int) -> int:
    """Return how many items of an order, at most `most`, may be columns of an envelope for these tasks; 0 for none."""
    if not order.durable or order.pipeline or order.request.priority is not Priority.BULK:
        return 0
    return min(most, *(task.kind.in_columns for task in order.request.tasks if task.name in tasks))


def _part(item: Item, tasks: tuple[str, ...]) -> Item:
    params = {name: value for name, value in item.params.items() if name in tasks}
    return msgspec.structs.replace(item, tasks=tasks, params=params)
