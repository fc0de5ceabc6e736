"""Texts of bulk that run as a block: the answers of single items, stored once, whatever happens to the block."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from producers.wire.messages import Envelope, Item, Priority, stored_envelope
from results_store.records import ALONE_AFTER_DEATHS, Claim
from results_store.store import Store
from tests.block_model import BlockModel
from tests.end_to_end.processes import until
from tests.integration.test_chunked_envelopes import assert_answered, bulk, kept
from tests.integration.test_execution import ATTEMPTS, FAR, Rig, reference
from workers.device.device_process import ModelToLoad
from workers.envelope.execution import Execution
from workers.envelope.gate import EnvelopeInterrupted
from workers.envelope.portions import Portion
from workers.envelope.postponed_work import PostponedWork
from workers.retries import RetrySettings

TEXTS = tuple(f"text {'x' * (number % 7)} {number % 40}" for number in range(50))


@pytest.fixture
def rig(store: Store) -> Iterator[Rig]:
    with Rig(store, rows=16) as rig:
        yield rig


def states(rig: Rig, envelope: Envelope) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for row in rig.store.results(envelope.job):
        found.setdefault(row.state.value, set()).add(row.seq)
    return found


@pytest.mark.parametrize("in_columns", [False, True])
def test_a_block_runs_in_several_batches_and_is_stored_in_chunks(rig: Rig, *, in_columns: bool) -> None:
    """The flight recorder has all its items; equal texts share a row."""
    envelope = bulk(rig, TEXTS, in_columns=in_columns)
    assert rig.run(reference(envelope)) == {"items": len(TEXTS), "succeeded": 2 * len(TEXTS)}
    assert kept(rig.store) == (0, 2)
    assert_answered(rig, envelope, TEXTS)
    assert len(rig.batches) >= 3
    assert sum(batch.items for batch in rig.batches) == len(TEXTS)
    assert sum(batch.rows for batch in rig.batches) == len(set(TEXTS))
    recorded = [item for batch in rig.batches for item in (batch.trace or {})["items"]]
    assert sorted(item[1] for item in recorded) == list(range(len(TEXTS)))
    assert all(item[4] == len(TEXTS[item[1]]) for item in recorded)


@pytest.mark.parametrize("poison", ["raise", "die", "oom", "short"])
def test_a_text_that_fails_costs_only_itself(rig: Rig, poison: str) -> None:
    """Its part of the block is taken apart."""
    texts = [*TEXTS[:20], f"{poison} now", *TEXTS[20:]]
    envelope = bulk(rig, texts)
    assert rig.run(reference(envelope))["failed"] == 2
    assert states(rig, envelope) == {"failed": {20}, "succeeded": {*range(len(texts))} - {20}}
    assert rig.row(envelope)["state"] == "done"
    assert rig.store.job(envelope.job).finished


def test_texts_that_are_not_simple_run_beside_the_block(rig: Rig) -> None:
    """The chunk has the others."""
    texts = [*TEXTS, "refuse me", "alone", "alone"]
    envelope = bulk(rig, texts)
    assert rig.run(reference(envelope)) == {"items": len(texts), "succeeded": 2 * len(TEXTS) + 4, "failed": 2}
    assert kept(rig.store) == (6, 2)
    found = {(row.seq, row.task): row for row in rig.store.results(envelope.job)}
    assert found[51, "say"].output == [{"label": f"said {zlib.crc32(b'alone')}", "score": 1.0}]


def test_an_answer_that_a_block_cannot_make_is_made_by_items(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the fault."""
    model = rig.execution.offer.now.models["scripted"].model

    def finish_block(*_: object) -> object:
        raise RuntimeError("scripted")

    monkeypatch.setattr(model, "finish_block", finish_block)
    envelope = bulk(rig, TEXTS)
    rig.run(reference(envelope))
    assert_answered(rig, envelope, TEXTS)


def test_columns_of_a_cancelled_job_are_cancelled(rig: Rig) -> None:
    envelope = bulk(rig, TEXTS, in_columns=True)
    rig.store.cancel_job(envelope.job)
    assert rig.run(reference(envelope)) == {"items": len(TEXTS), "cancelled": 2 * len(TEXTS)}
    assert {row.key for row in rig.store.results(envelope.job)} == {f"k{seq}" for seq in range(len(TEXTS))}


def test_columns_that_are_given_up_are_replayed(rig: Rig) -> None:
    """Their items fail by name, and the inputs are kept."""
    envelope = bulk(rig, TEXTS, in_columns=True)
    for _ in range(ATTEMPTS):
        rig.execution.writer.claim(envelope.id)
        rig.store.note_failure(envelope.id, worker="w", error={"kind": "Scripted", "message": "again"})
    assert rig.run(reference(envelope)) == {"items": len(TEXTS), "dead": 2 * len(TEXTS)}
    assert rig.store.dead_letters.replay(failed_before=FAR).results == 2 * len(TEXTS)
    rig.run(reference(envelope))
    assert_answered(rig, envelope, TEXTS)


def test_a_replay_computes_only_what_failed(rig: Rig) -> None:
    """Of an envelope that may have a thousand texts."""
    texts = [*TEXTS, "raise now", "raise again"]
    envelope = bulk(rig, texts, in_columns=True)
    assert rig.run(reference(envelope))["failed"] == 4
    before = len(rig.batches)
    assert rig.store.dead_letters.replay(failed_before=FAR).results == 4
    assert rig.run(reference(envelope)) == {"items": 2, "failed": 4}
    assert {len(batch.trace["items"]) for batch in rig.batches[before:] if batch.trace} <= {1, 2}
    assert states(rig, envelope) == {"failed": {50, 51}, "succeeded": {*range(50)}}
    assert rig.row(envelope)["state"] == "done"


def test_an_envelope_that_runs_alone_is_no_block(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of its texts may have killed its workers."""
    monkeypatch.setattr(Execution, "prepare_block", lambda *_: pytest.fail("a block"))
    envelope = bulk(rig, TEXTS, in_columns=True)
    for _ in range(ALONE_AFTER_DEATHS):
        rig.store.claim([envelope.id], worker="dead", lease_s=-1)
    rig.run(reference(envelope))
    assert kept(rig.store) == (0, 2)
    assert_answered(rig, envelope, TEXTS)


def test_a_second_run_stores_nothing_twice(rig: Rig) -> None:
    """A worker that lost its lease in the middle of a run ends beside another one."""
    envelope = bulk(rig, TEXTS, in_columns=True)
    claimed = rig.execution.writer.claim(envelope.id)
    rig.run(reference(envelope))
    assert claimed.payload is not None
    late = Portion(stored_envelope(claimed.payload, claimed.content_type)[0], [])
    inputs = rig.execution.fetch_inputs(late.envelope)
    block = rig.execution.prepare_block(late.envelope, inputs)
    assert block is not None
    rig.execution.batch(late.envelope, [], inputs, lambda *_: None, block)
    rig.execution.store(late, Claim.WORK, [], PostponedWork(RetrySettings(), claimed), block)
    assert kept(rig.store) == (0, 2)
    assert_answered(rig, envelope, TEXTS)


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_what_waits_for_an_older_version_runs_with_the_newer(store: Store, tmp_path: Path) -> None:
    """The part at the device ends with the older one, and each result says which it was."""
    gate, texts = held_up(tmp_path)
    with Rig(store, rows=4) as rig:
        envelope = bulk(rig, texts)
        running = rig.begin(reference(envelope))
        at_the_device(rig)
        offer = rig.execution.offer
        older = offer.now.models["scripted"]
        spec = replace(older.model.spec, revision="2")
        newer = replace(older, model=BlockModel(spec), revision="2", generation=1)
        admitted = rig.batcher.admit(newer, ModelToLoad.from_spec("tests.block_model:BlockModel", spec))
        offer.now = replace(offer.now, models={**offer.now.models, "scripted": newer})
        retired = rig.batcher.retire(older.key)
        gate.unlink()
        assert running.result(60)["succeeded"] == 2 * len(texts)
        assert (admitted.result(60), retired.result(60)) == (None, None)
        revisions = [row.model_revision for row in rig.store.results(envelope.job)]
        assert {*revisions} == {"1", "2"}
        assert len(revisions) == 2 * len(texts)


def held_up(tmp_path: Path) -> tuple[Path, tuple[str, ...]]:
    """Return a file, and texts whose first batch waits until the file is gone."""
    gate = tmp_path / "gate"
    gate.touch()
    return gate, (f"wait while {gate}", *TEXTS)


def at_the_device(rig: Rig) -> None:
    until(rig.batcher.running_groups)


def test_a_cancelled_job_loses_the_part_that_waits(rig: Rig, tmp_path: Path) -> None:
    gate, texts = held_up(tmp_path)
    envelope = bulk(rig, texts)
    running = rig.begin(reference(envelope))
    at_the_device(rig)
    rig.store.cancel_job(envelope.job)
    rig.held.drop_cancelled(rig.batcher)
    gate.unlink()
    summary = running.result(30)
    assert summary["cancelled"] > 0
    found = states(rig, envelope)
    assert 0 in found["succeeded"]
    assert found["succeeded"] | found["cancelled"] == {*range(len(texts))}
    assert rig.row(envelope)["state"] == "done"


def test_a_stop_gives_back_what_was_not_computed(rig: Rig, tmp_path: Path) -> None:
    """The next run stores each result once."""
    gate, texts = held_up(tmp_path)
    envelope = bulk(rig, texts)
    running = rig.begin(reference(envelope))
    at_the_device(rig)
    (held,) = rig.held.now()
    rig.held.give_back(held, rig.batcher)
    with pytest.raises(EnvelopeInterrupted):
        running.result(30)
    gate.unlink()
    rig.run(reference(envelope))
    assert_answered(rig, envelope, texts)


def test_an_urgent_item_does_not_wait_for_a_whole_block(rig: Rig, tmp_path: Path) -> None:
    """It comes after the batches at the device."""
    gate, texts = held_up(tmp_path)
    block = rig.begin(reference(bulk(rig, texts)))
    at_the_device(rig)
    urgent = rig.accept(priority=Priority.INTERACTIVE, items=(Item(0, "urgent", ("say",)),))
    answer = rig.begin(reference(urgent))
    until(lambda: all(held.group for held in rig.held.now()) and len(rig.held.now()) == 2)
    gate.unlink()
    answer.result(30)
    block.result(30)
    order = [batch.priorities for batch in rig.batches]
    assert order.index({"0": 1}) < len(order) - 1
