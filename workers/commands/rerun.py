"""Runs a recorded micro-batch again: the same items in the same rows, compared with the stored results.

The flight recorder has the items of a batch, and the store has their inputs (unless they were dropped). A wrong answer
that depended on the other items of its batch can thus be reproduced, on the same model or on another device or backend.
"""

from __future__ import annotations

import math
import queue
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from producers.wire.errors import ConfigurationError
from producers.wire.messages import Envelope, stored_envelope
from results_store.records import Batch, Result, ResultState
from results_store.store import Store
from workers.batching.microbatch import MicroBatch
from workers.batching.serving import served_explainers, served_models
from workers.batching.serving.offered_versions import CurrentVersions, OfferedVersions
from workers.device.device_client import DeviceEvent, ProcessDevice
from workers.device.devices import Device
from workers.envelope.input_limits import InputLimits
from workers.envelope.preparation import Preparation, PreparedItem
from workers.settings import Settings


class CannotRerun(ConfigurationError):
    """The batch cannot be run again; `str()` names the missing data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerun:
    """A batch beside its record. `differences` are by task: the largest between two numbers in the same place of an
    output, infinite for outputs of another form (another label, another state), over the compared results.
    """

    batch: Batch
    revision: str
    rows: int
    padded_tokens: int
    forward_s: float
    compared: Mapping[str, int]
    differences: Mapping[str, float]


def rerun(store: Store, settings: Settings, device: Device, id_: str) -> Rerun:
    """Run a recorded batch again on `device`. Raises CannotRerun, UnknownBatch, ConfigurationError."""
    batch = store.flight.batch(id_)
    if batch.model.endswith(served_explainers.SUFFIX):
        raise CannotRerun(f"batch {id_}: is an explanation, which is computed in steps; request it again instead")
    stored = _stored(store, batch)
    envelopes = _envelopes(store, stored)
    wanted, served = served_models.serve(settings, batch.model, device)
    limits = InputLimits(**settings.limits.of_inputs)
    offer = CurrentVersions(OfferedVersions(settings.catalogue, {batch.model: served}))
    preparation = Preparation(offer=offer, limits=limits, database=store)
    steps = list(_steps(preparation, envelopes, stored))
    again = MicroBatch([step.entry for _, step in steps if step.entry], 0.0)
    loaded = ProcessDevice(
        device, [wanted], (events := queue.SimpleQueue[DeviceEvent]()).put, threads=settings.worker.threads
    )
    try:
        loaded.start()
        _expect("ready", events)
        loaded.run(again.id, batch.model, served.model.collate(again.rows), again.wanted, urgency=0)
        done = _expect("done", events)
    finally:
        loaded.close()
    again.deliver(done.arrays, 0.0, 0.0)
    results = [result for envelope, step in steps for result in preparation.finish_items(envelope, [step])]
    compared, differences = _compare(stored, results)
    return Rerun(
        batch=batch,
        revision=served.revision,
        rows=len(again.rows),
        padded_tokens=again.padded_cost,
        forward_s=done.header["forward_s"],
        compared=compared,
        differences=differences,
    )


def _stored(store: Store, batch: Batch) -> list[Result]:
    """Return the stored results of the batch, in the order of its items."""
    if batch.trace is None:
        raise CannotRerun(f"batch {batch.id}: its items were not recorded; it is from before version 0.2")
    jobs = batch.trace["jobs"]
    places = {(jobs[job], seq): place for place, (job, seq, *_) in enumerate(batch.trace["items"])}
    found: list[Result] = []
    for job in jobs:
        found += [
            row for row in store.results_of(job, [seq for own, seq in places if own == job]) if row.batch == batch.id
        ]
    if len({(row.job, row.seq) for row in found}) < len(places):
        raise CannotRerun(
            f"batch {batch.id}: some of its results are no longer stored, or another run's results were stored first"
        )
    return sorted(found, key=lambda row: places[row.job, row.seq])


def _envelopes(store: Store, stored: Sequence[Result]) -> dict[str, Envelope]:
    """Return the envelopes of the items, without deadlines."""
    ids = {row.envelope for row in stored}
    kept = store.inputs(ids)
    if missing := ids - kept.keys():
        raise CannotRerun(
            f"the inputs of envelope {min(missing)} are not kept: it was not durable, or its inputs were deleted"
        )
    decoded = {id_: stored_envelope(*payload)[0] for id_, payload in kept.items()}
    return {id_: msgspec.structs.replace(envelope, deadline_at=None) for id_, envelope in decoded.items()}


def _steps(
    preparation: Preparation, envelopes: Mapping[str, Envelope], stored: Sequence[Result]
) -> Iterator[tuple[Envelope, PreparedItem]]:
    """Prepare each item once, as before."""
    for id_, seq in dict.fromkeys((row.envelope, row.seq) for row in stored):
        envelope = envelopes[id_]
        item = next(item for item in envelope.items if item.seq == seq)
        [step] = preparation.prepare_items(envelope, [item], preparation.derivation(envelope.job, [item]))
        if step.entry is None:
            raise CannotRerun(f"item {seq} of envelope {id_} cannot be prepared now: {step.results[0].error}")
        yield envelope, step


def _expect(event: str, events: queue.SimpleQueue[DeviceEvent]) -> DeviceEvent:
    found = events.get()
    if found.header["event"] != event:
        raise CannotRerun(f"the device did not answer: {found.header.get('message', found.header['event'])}")
    return found


def _compare(before: Sequence[Result], after: Sequence[Result]) -> tuple[dict[str, int], dict[str, float]]:
    again = {(row.job, row.seq, row.task): row for row in after}
    compared: dict[str, int] = {}
    differences: dict[str, float] = {}
    for row in before:
        other = again.get((row.job, row.seq, row.task))
        compared[row.task] = compared.get(row.task, 0) + 1
        differences[row.task] = max(differences.get(row.task, 0.0), math.inf if other is None else _between(row, other))
    return compared, differences


def _between(one: Result, other: Result) -> float:
    if one.state is not other.state:
        return math.inf
    if one.state is not ResultState.SUCCEEDED:
        return 0.0
    if one.vector is None or other.vector is None:
        return difference(one.output, other.output)
    vectors = [np.frombuffer(vector, dtype="<f4") for vector in (one.vector, other.vector)]
    return math.inf if vectors[0].shape != vectors[1].shape else float(np.abs(vectors[0] - vectors[1]).max(initial=0.0))


def difference(one: Any, other: Any) -> float:
    """Return the largest difference between two numbers in the same place of two JSON values; infinite if they
    differ otherwise.
    """
    match one, other:
        case dict(), dict() if one.keys() == other.keys():
            return max((difference(one[key], other[key]) for key in one), default=0.0)
        case list(), list() if len(one) == len(other):
            return max(map(difference, one, other), default=0.0)
        case (int() | float(), int() | float()) if not isinstance(one, bool) and not isinstance(other, bool):
            return abs(one - other)
    return 0.0 if one == other else math.inf
