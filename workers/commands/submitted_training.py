"""A training as a job of the fleet: accepted in the store, and published like any other envelope."""

from __future__ import annotations

import hashlib
import time
from contextlib import closing, suppress
from pathlib import Path

import msgspec

from producers.wire.connection import Connection
from producers.wire.errors import BrokerUnavailable, Overloaded
from producers.wire.messages import VERSION, Envelope, Item, PathInput, Priority, new_id
from producers.wire.packing import outbox_row
from producers.wire.publisher import Publisher, message
from producers.wire.training.training_job import TRAINING, TrainingParams
from results_store.records import NewJob
from results_store.store import Store


def submit_training(recipe: Path, name: str, *, compare: bool) -> tuple[str, bool]:
    """Submit a recipe that was read and found to be right; return the job, and whether a live node takes trainings.

    Raises BrokerUnavailable or StoreUnavailable; then nothing was accepted.
    """
    where = Connection()
    with closing(Publisher(where.broker_url, where.look_up)) as publisher, Store(where.store_url) as store:
        publisher.check()
        tenant = store.tenants.enrol(where.tenant)
        params = TrainingParams(hashlib.sha256(recipe.read_bytes()).hexdigest(), compare)
        item = Item(0, PathInput(str(recipe.absolute())), (TRAINING,), {TRAINING: msgspec.to_builtins(params)})
        envelope = Envelope(
            version=VERSION,
            id=new_id(),
            job=new_id(),
            model=TRAINING,
            priority=Priority.BULK,
            queued_at=time.time(),
            items=(item,),
            tenant=tenant.name,
        )
        row = outbox_row(envelope, tenant.lane)
        job = NewJob(id=envelope.job, priority=int(Priority.BULK), name=f"training of {name}", tenant=tenant.name)
        at = store.add_envelopes([row], jobs=[job])
        with suppress(BrokerUnavailable, Overloaded):  # it is accepted, and a reconciler publishes it
            publisher.publish([message(row, about=envelope.about, reference=publisher.by_reference, at=at)])
            store.mark_published([row.id])
        return job.id, TRAINING in (publisher.served or ())
