"""From parcels to envelopes: what goes the same way at the same time shares envelopes. Pure: no I/O."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from producers.client.request import Request
from producers.wire.messages import VERSION, Envelope, Item, Priority, new_id
from producers.wire.packing import Sealed, Weighed, pack, sealed

#: Items that come at about the same time with the same `deadline_s` share envelopes if their deadlines, put off by at
#: most this part of `deadline_s`, are the same.
DEADLINE_GRAIN = 1 / 64


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
