"""Rows for the store's tests, with everything filled in that a test does not care about."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from results_store.records import Batch, NewEnvelope, NewJob, Result, ResultState
from results_store.store import Store

JSON = "application/json"


def new_job(id_: str = "job", **changes: Any) -> NewJob:
    return NewJob(**{"id": id_, "priority": 9, "created_at": 100.0, **changes})


def new_envelope(id_: str, **changes: Any) -> NewEnvelope:
    given = {"job": "job", "model": "text", "priority": 9, "items": 1, "results": 1, "payload": b"{}"}
    return NewEnvelope(**{"id": id_, "content_type": JSON, "created_at": 100.0, **given, **changes})


def result(seq: int, task: str = "topic", **changes: Any) -> Result:
    given = {"job": "job", "envelope": "e0", "state": ResultState.SUCCEEDED, "output": [{"label": "sport"}]}
    return Result(**{"seq": seq, "task": task, **given, **changes})


def batch(id_: str, **changes: Any) -> Batch:
    given = {"model": "text", "model_revision": "r1", "device": "cpu", "worker": "w1", "started_at": 100.0}
    sizes = {"forward_s": 0.02, "queue_wait_s": 0.001, "items": 2, "rows": 2, "tokens": 20, "padded_tokens": 24}
    return Batch(**{"id": id_, "heads": {"topic": 2}, "priorities": {"9": 2}, **given, **sizes, **changes})


def submit(store: Store, envelopes: int = 1, *, items: int = 1, ids: Sequence[str] = ()) -> None:
    """Create the job ``job`` with envelopes ``e0``, ``e1`` …, each of `items` items with one result each."""
    named = ids or [f"e{number}" for number in range(envelopes)]
    store.create_job(new_job())
    store.add_envelopes([new_envelope(id_, items=items, results=items) for id_ in named])


def run_together(work: Callable[[int], None], count: int) -> None:
    """Run `work(0)` … in threads that start at the same moment; an error in one fails the test."""
    gate = threading.Barrier(count)
    errors: list[BaseException] = []

    def run(number: int) -> None:
        gate.wait()
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
