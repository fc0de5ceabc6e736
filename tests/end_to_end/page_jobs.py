"""Jobs for the page's tests, written to the store as producers and workers write them: no fleet is needed to look at
them.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from producers.wire.messages import Envelope, InlineBytes, Input, Item, Priority, encode, new_id
from results_store.records import NewEnvelope, NewJob, Result, ResultState
from results_store.sql.item_numbering import root_of
from results_store.store import Store

#: No worker serves it: what is submitted stays where it is until the test says otherwise.
MODEL = "nobody"


def picture(colour: str = "teal", size: tuple[int, int] = (60, 40), form: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, form)
    return out.getvalue()


def submit(
    store: Store,
    inputs: Sequence[Input],
    *,
    name: str | None = None,
    tasks: tuple[str, ...] = ("look",),
    tenant: str = "",
    priority: Priority = Priority.BULK,
    age_s: float = 0.0,
    numbers: Sequence[int] = (),
    pipeline: dict[str, Any] | None = None,
) -> tuple[str, str]:
    """Submit a job of one envelope; return the ids of both. The items have the given numbers, or 0, 1, …"""
    at = time.time() - age_s
    items = tuple(Item(numbers[seq] if numbers else seq, value, tasks) for seq, value in enumerate(inputs))
    envelope = Envelope(
        version=1, id=new_id(), job=new_id(), model=MODEL, priority=priority, queued_at=at, items=items, tenant=tenant
    )
    payload, content_type = encode(envelope)
    row = NewEnvelope(
        id=envelope.id,
        job=envelope.job,
        model=MODEL,
        priority=priority,
        items=len({root_of(n) for n in numbers}) if numbers else len(items),
        results=envelope.results,
        payload=payload,
        content_type=content_type,
        created_at=at,
    )
    job = NewJob(id=envelope.job, name=name, priority=priority, created_at=at, tenant=tenant, pipeline=pipeline)
    store.add_envelopes([row], jobs=[job])
    return envelope.job, envelope.id


def answer(
    store: Store,
    job: str,
    envelope: str,
    outputs: Mapping[int, Any],
    *,
    task: str = "look",
    done: bool = True,
    keys: Mapping[int, str] | None = None,
) -> None:
    """Store results by `seq`: an output, a vector's bytes, or an exception that the item failed with."""
    rows = [
        replace(_row(job, envelope, seq, task, output), key=(keys or {}).get(seq)) for seq, output in outputs.items()
    ]
    store.commit(rows, done=[envelope] if done else [])


def _row(job: str, envelope: str, seq: int, task: str, output: Any) -> Result:
    now = time.time()
    ended: dict[str, Any] = {"state": ResultState.SUCCEEDED, "output": output}
    if isinstance(output, Exception):
        ended = {
            "state": ResultState.FAILED,
            "error": {"kind": type(output).__name__, "message": str(output), "traceback": "of operators only"},
        }
    elif isinstance(output, bytes):
        ended = {"state": ResultState.SUCCEEDED, "vector": output}
    return Result(
        job=job, seq=seq, task=task, envelope=envelope, model=MODEL, queued_at=now - 1, stored_at=now, **ended
    )


def inline(data: bytes) -> InlineBytes:
    return InlineBytes(data)
