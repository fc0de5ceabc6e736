"""The flight recorder's rows, on both databases."""

from __future__ import annotations

import pytest

from producers.commands.dry_run import Estimate, estimates
from results_store.errors import UnknownBatch
from results_store.records import QueuedWork
from results_store.store import Store
from tests.integration.rows import batch, new_envelope, new_job, result

TRACE = {"jobs": ["job"], "items": [[0, 0, 0, 9, 12, 3.5], [0, 1, 1, 9, 10, 3.5]]}


def test_a_batch_comes_back_as_it_was_recorded(store: Store) -> None:
    """With its trace where that is asked for; lists of many batches go without, as it is most of a row."""
    whole = batch("b0", idle_s=0.5, predicted_s=0.03, cached_rows=1, trace=TRACE)
    store.commit([], batches=[whole])
    assert store.flight.batch("b0") == whole
    assert store.flight.recent(traces=True) == [whole]
    assert store.flight.recent()[0].trace is None


def test_batches_since(store: Store) -> None:
    """What a screen that looks every second has not seen yet."""
    store.commit([], batches=[batch(f"b{n}", started_at=100.0 + n) for n in range(5)])
    assert [each.id for each in store.flight.recent(since=102.0)] == ["b4", "b3"]
    store.commit([], batches=[batch("long", model="vision", started_at=90.0, forward_s=13.5)])
    assert [each.id for each in store.flight.recent(ended_since=103.0)] == ["b4", "b3", "long"]
    assert [each.id for each in store.flight.recent(since=90.5, ended_since=103.0)] == ["b4", "b3"]
    assert [each.id for each in store.flight.recent(limit=1, model="vision")] == ["long"]


def test_an_unknown_batch_is_named(store: Store) -> None:
    """An operator mistypes."""
    with pytest.raises(UnknownBatch, match="b9"):
        store.flight.batch("b9")


def test_inputs_are_there_until_they_are_dropped(store: Store) -> None:
    """What a batch is run again from."""
    store.create_job(new_job())
    store.add_envelopes([new_envelope(id_, payload=id_.encode()) for id_ in ("e0", "e1")])
    store.commit([result(0)], done=["e0"], drop_inputs=True)
    assert store.inputs(["e0", "e1", "e2"]) == {"e1": (b"e1", "application/json")}


def test_queued_work_in_seconds(store: Store) -> None:
    """Items that wait, over the rates of all workers; unknown where nothing ran."""
    store.create_job(new_job())
    waiting = [("e0", "text", 0), ("e1", "text", 9), ("e2", "text", 9), ("e3", "vision", 9)]
    store.add_envelopes(
        [new_envelope(id_, model=model, priority=priority, items=30, results=30) for id_, model, priority in waiting]
    )
    ran = [("w1", 1000.0, 0.4, 32), ("w2", 1001.0, 0.8, 40), ("w0", 900.0, 9.0, 1)]  # the last is long gone
    store.commit([], batches=[batch(w, worker=w, started_at=at, forward_s=s, items=items) for w, at, s, items in ran])

    assert store.flight.queued_work() == [
        QueuedWork(model="text", priority=0, items=30, seconds_per_item=pytest.approx(1 / 130)),
        QueuedWork(model="text", priority=9, items=60, seconds_per_item=pytest.approx(1 / 130)),
        QueuedWork(model="vision", priority=9, items=30, seconds_per_item=None),
    ]
    assert store.flight.queued_work()[1].seconds == pytest.approx(60 / 130)


def test_an_estimate_is_made_of_learned_costs(store: Store) -> None:
    """The device's and the host's part of each model, over the rates of its workers; tokens as in its batches."""
    text = [
        batch(f"{w}{n}", worker=w, forward_s=0.3, host_s=0.1, items=100, tokens=900, started_at=1000.0 + n)
        for n in range(3)
        for w in ("w1", "w2")
    ]
    vision = [batch("v", model="vision", forward_s=2.0, items=10, tokens=10, started_at=1001.0)]
    store.commit([], batches=[*text, *vision])
    models = {"text": ("topic", "spam"), "vision": ("image-classification",), "other": ("mine",)}
    assert estimates(store, models, 5000) == [
        Estimate(model="text", tasks=models["text"], seconds=pytest.approx(5000 * 0.004 / 2), tokens=45_000),
        Estimate(model="vision", tasks=models["vision"], seconds=pytest.approx(1000), tokens=5000),
        Estimate(model="other", tasks=models["other"], seconds=None, tokens=None),
    ]


def test_queued_work_counts_the_hosts_part(store: Store) -> None:
    """On a fast device the host is what costs. Waits for work, in which few envelopes were held, do not count."""
    store.create_job(new_job())
    store.add_envelopes([new_envelope("e0", model="text", priority=9, items=100, results=100)])
    busy = [
        batch(f"b{n}", forward_s=0.001, idle_s=0.009, host_s=0.009, items=100, started_at=1000.0 + n) for n in range(3)
    ]
    alone = batch("b9", forward_s=0.001, idle_s=5.0, items=100, started_at=1009.0)
    store.commit([], batches=[*busy, alone])
    assert store.flight.queued_work()[0].seconds == pytest.approx(0.01)
