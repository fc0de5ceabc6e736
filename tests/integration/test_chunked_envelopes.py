"""Which results of a worker are stored in chunks: simple ones of bulk, and nobody can tell it from what is read."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, select

from producers.wire.messages import Envelope, Item, Priority
from results_store.records import Result, ResultState
from results_store.sql.chunks.packed_rows import LEAST
from results_store.sql.schema import result_chunks, results
from results_store.store import Store
from tests.integration.test_execution import FAR, Rig, reference, rig

__all__ = ["rig"]

TEXTS = tuple(f"text {number}" for number in range(LEAST + 2))


def bulk(rig: Rig, texts: Sequence[str] = TEXTS, **changes: Any) -> Envelope:
    items = tuple(Item(seq, text, ("say", "place"), key=f"k{seq}") for seq, text in enumerate(texts))
    return rig.accept(**{"priority": Priority.BULK, "items": items, **changes})


def kept(store: Store) -> tuple[int, int]:
    """Return the number of rows and of chunks in the store."""
    with store._database.read() as connection:
        rows, chunks = (
            connection.execute(select(func.count()).select_from(t)).scalar() for t in (results, result_chunks)
        )
    return rows or 0, chunks or 0


def assert_answered(rig: Rig, envelope: Envelope, texts: Sequence[str] = TEXTS) -> None:
    crcs = [zlib.crc32(text.encode()) for text in texts]
    found = {(row.seq, row.task): row for row in rig.store.results(envelope.job)}
    assert len(found) == 2 * len(texts)
    for seq, crc in enumerate(crcs):
        said, placed = found[seq, "say"], found[seq, "place"]
        assert said.output == [{"label": f"said {crc}", "score": 1.0}]
        assert placed.vector == np.array([crc % 1000, 1], dtype="<f4").tobytes()
        for row in (said, placed):
            assert (row.key, row.state, row.model, row.model_revision) == (f"k{seq}", "succeeded", "scripted", "1")
            assert (row.tokens, row.envelope, row.queued_at) == (len(texts[seq]), envelope.id, 1.0)
            assert row.batch in {batch.id for batch in rig.batches}
            assert 0 < row.batched_at <= row.computed_at  # type: ignore[operator]
    row = rig.row(envelope)
    assert (row["state"], row["stored"]) == ("done", 2 * len(texts))
    assert rig.store.job(envelope.job).finished


def test_simple_results_of_bulk_are_a_chunk_for_each_task(rig: Rig) -> None:
    """With the envelope's end, its counters, and all that a row would have."""
    envelope = bulk(rig)
    assert rig.run(reference(envelope)) == {"items": len(TEXTS), "succeeded": 2 * len(TEXTS)}
    assert kept(rig.store) == (0, 2)
    assert_answered(rig, envelope)
    assert rig.run(reference(envelope)) == {"skipped": "done"}


@pytest.mark.parametrize(
    "changes",
    [
        {"priority": Priority.INTERACTIVE},
        {"pipeline": True},
        {"items": tuple(Item(seq, text, ("echo",)) for seq, text in enumerate(TEXTS))},
        {"items": tuple(Item(seq, text, ("say", "place"), key=f"k{seq}") for seq, text in enumerate(TEXTS[:3]))},
    ],
    ids=["urgent", "pipeline", "other outputs", "few"],
)
def test_other_results_are_rows(rig: Rig, changes: dict[str, Any]) -> None:
    """Latency, steps that follow, and outputs of other forms need them."""
    envelope = bulk(rig, **changes)
    rig.run(reference(envelope))
    rows, chunks = kept(rig.store)
    assert (rows, chunks) == (envelope.results, 0)
    assert rig.row(envelope)["state"] == "done"


def test_items_that_fail_are_rows_beside_the_chunk_until_they_are_replayed(rig: Rig) -> None:
    """The replay stores only what was missing, as rows."""
    texts = [*TEXTS, "raise", "refuse"]
    envelope = bulk(rig, texts)
    assert rig.run(reference(envelope))["failed"] == 4
    assert kept(rig.store) == (4, 2)
    status = rig.store.job(envelope.job)
    assert (status.succeeded, status.failed, status.finished) == (2 * len(TEXTS), 4, True)

    assert rig.store.dead_letters.replay(failed_before=FAR).results == 4
    assert not rig.store.job(envelope.job).finished
    assert rig.run(reference(envelope))["failed"] == 4

    assert kept(rig.store) == (4, 2)
    states = [row.state for row in rig.store.results(envelope.job)]
    assert (states.count(ResultState.SUCCEEDED), states.count(ResultState.FAILED)) == (2 * len(TEXTS), 4)
    assert rig.store.job(envelope.job).finished


def test_an_item_that_was_cancelled_first_stays_cancelled(rig: Rig) -> None:
    """As `Handle.cancel` does it; the chunk of that task is taken apart."""
    envelope = bulk(rig)
    cancelled = Result(job=envelope.job, seq=3, task="say", envelope=envelope.id, state=ResultState.CANCELLED)
    assert rig.store.commit([cancelled]).inserted == 1
    rig.run(reference(envelope))
    assert kept(rig.store) == (len(TEXTS), 1)
    status = rig.store.job(envelope.job)
    assert (status.succeeded, status.cancelled, status.finished) == (2 * len(TEXTS) - 1, 1, True)


def test_a_database_that_older_versions_may_read_has_no_chunks(store: Store) -> None:
    """Their readers would miss the results; see `argosy migrate --chunks`."""
    store._database.chunked = False
    with Rig(store) as rig:
        envelope = bulk(rig)
        rig.run(reference(envelope))
        assert kept(store) == (2 * len(TEXTS), 0)
        assert_answered(rig, envelope)
