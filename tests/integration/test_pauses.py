"""Nothing of a paused model, task or tenant starts, what runs ends, and nothing is lost."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from producers.wire.messages import Item, Priority
from results_store.records import ResultState
from results_store.store import Store
from tests.end_to_end.processes import until
from tests.integration.test_execution import Rig, assert_computed, made, reference
from tests.integration.test_retries import sqlite_only
from workers.envelope.gate import EnvelopeInterrupted
from workers.node.paused_work import PausedWork

__all__ = ["sqlite_only"]


@pytest.fixture
def rig(store: Store) -> Iterator[Rig]:
    with Rig(store, rows=1) as rig:
        yield rig


@pytest.fixture
def lite_rig(sqlite_only: Store) -> Iterator[Rig]:
    """For what does not depend on the database."""
    with Rig(sqlite_only, rows=1) as rig:
        yield rig


def overdue(rig: Rig) -> list[str]:
    return [envelope.id for envelope in rig.store.take_overdue(overdue_s=1000)]


def both(*texts: str) -> tuple[Item, ...]:
    return tuple(Item(seq, text, ("echo", "say")) for seq, text in enumerate(texts))


def test_a_paused_model_waits_and_comes_back(rig: Rig) -> None:
    """Without a slot, and without a message that would come up again and again."""
    envelope = rig.accept()
    rig.store.pauses.pause("model", "scripted")

    assert rig.run(reference(envelope)) == {"skipped": "waiting"}
    assert rig.run(reference(envelope)) == {"skipped": "waiting"}, "a second copy changes nothing"
    assert (overdue(rig), rig.batches) == ([], [])
    rig.store.pauses.resume("model", "scripted")
    assert overdue(rig) == [envelope.id]
    rig.run(reference(envelope))

    assert_computed(rig, envelope)
    assert rig.row(envelope)["attempts"] == 1


def test_a_paused_task_holds_up_no_other_task_of_its_items(rig: Rig) -> None:
    """Tasks share envelopes and items; each result comes as soon as its own task may run."""
    envelope = rig.accept(items=both("one", "two"), priority=Priority.BULK)
    rig.store.pauses.pause("task", "say")
    rig.store.pauses.pause("task", "another")

    assert rig.run(reference(envelope)) == {"items": 2, "succeeded": 2, "postponed": 2}
    assert {row.task for row in rig.store.results(envelope.job)} == {"echo"}
    assert overdue(rig) == []
    rig.store.pauses.resume("task", "another")
    assert overdue(rig) == []
    rig.store.pauses.resume("task", "say")
    assert overdue(rig) == [envelope.id]
    assert rig.run(reference(envelope)) == {"items": 2, "succeeded": 2}
    assert rig.store.job(envelope.job).finished


def test_an_envelope_of_nothing_but_a_paused_task_computes_nothing(lite_rig: Rig) -> None:
    """Two pauses over it are lifted one after the other."""
    envelope = lite_rig.accept(items=both("one"))
    lite_rig.store.pauses.pause("task", "say")
    lite_rig.store.pauses.pause("task", "echo")
    assert lite_rig.run(reference(envelope)) == {"items": 0, "postponed": 2}
    lite_rig.store.pauses.resume("task", "say")
    lite_rig.store.pauses.resume("task", "echo")
    assert overdue(lite_rig) == [envelope.id]
    assert lite_rig.run(reference(envelope)) == {"items": 1, "succeeded": 2}


def test_what_runs_ends_and_what_waits_for_a_batch_goes_back(lite_rig: Rig, tmp_path: Path) -> None:
    """A worker may hold minutes of work when a pause comes."""
    paused = PausedWork(lite_rig.store, lite_rig.held)
    file = tmp_path / "held"
    file.touch()
    texts = (f"wait while {file}", "two", "three", "four")
    envelope = lite_rig.accept(items=tuple(Item(seq, text, ("echo",)) for seq, text in enumerate(texts)))
    other = lite_rig.accept(model="counting", items=(Item(0, "3", ("count",)),))
    running, counted = lite_rig.begin(reference(envelope)), lite_rig.begin(reference(other))
    until(lambda: lite_rig.batcher._feeder.work.running_batch and all(one.group for one in lite_rig.held.now()))
    lite_rig.store.pauses.pause("model", "scripted", "bad labels")

    paused.look(lite_rig.batcher)
    file.unlink()

    with pytest.raises(EnvelopeInterrupted):
        running.result(timeout=30)
    assert counted.result(timeout=30)["succeeded"] == 1, "other models go on"
    stored = [row.seq for row in lite_rig.store.results(envelope.job)]
    assert stored in ([0], [0, 1]), "what ran, or was at the device, is stored"
    assert lite_rig.run(reference(envelope)) == {"skipped": "waiting"}
    lite_rig.store.pauses.resume("model", "scripted")
    assert overdue(lite_rig) == [envelope.id]
    lite_rig.run(reference(envelope))
    assert lite_rig.store.job(envelope.job).succeeded == 4


def test_a_deadline_ends_the_wait(lite_rig: Rig) -> None:
    """Whoever waits for it hears that it expired, though the pause goes on."""
    items = (*both("one"), Item(1, "two", ("say",)))
    envelope = lite_rig.accept(items=items, queued_at=1.0, deadline_at=2.5)
    lite_rig.store.pauses.pause("task", "say")
    lite_rig.run(reference(envelope))
    until(lambda: overdue(lite_rig) == [envelope.id])
    assert lite_rig.run(reference(envelope)) == {"items": 2, "expired": 2}
    states = {(row.seq, row.task): row.state for row in lite_rig.store.results(envelope.job)}
    assert states[0, "echo"] is ResultState.SUCCEEDED
    assert [batch.items for batch in lite_rig.batches] == [1]


@pytest.mark.parametrize("subject", ["model:scripted", "tenant:acme", "task:echo"])
def test_what_cannot_wait_is_refused_by_name(lite_rig: Rig, subject: str) -> None:
    """An envelope without a row has no place to wait in; it must not start, nor be lost in silence."""
    lite_rig.execution = replace(lite_rig.execution, paused=lambda: {subject})
    envelope = made(durable=False, tenant="acme", items=both("one"))
    summary = lite_rig.run(dict(msgspec.to_builtins(envelope)))

    errors: dict[str, Any] = {row.task: row.error for row in lite_rig.store.results(envelope.job)}
    assert errors["echo"]["kind"] == "Paused"
    assert "is paused, and an item that is not durable cannot wait" in errors["echo"]["message"]
    assert summary["failed"] == (1 if subject.startswith("task") else 2)
    assert (errors["say"] is None) is subject.startswith("task")


def test_a_job_names_the_pauses_that_hold_it(rig: Rig) -> None:
    """Also before a worker has looked at it; and a finished job is held by nothing."""
    envelope = rig.accept(items=both("one"))
    for kind, name in (("model", "scripted"), ("model", "counting"), ("tenant", ""), ("task", "say")):
        rig.store.pauses.pause(kind, name)  # type: ignore[arg-type]  # of a tuple
    assert [(held.kind, held.name) for held in rig.store.pauses.holding(envelope.job)] == [
        ("model", "scripted"),
        ("tenant", ""),
    ]
    rig.store.pauses.resume("model", "scripted")
    rig.store.pauses.resume("tenant", "")
    rig.run(reference(envelope))
    assert [held.name for held in rig.store.pauses.holding(envelope.job)] == ["say"]
    rig.store.pauses.resume("task", "say")
    assert overdue(rig) == [envelope.id]
    rig.run(reference(envelope))
    assert rig.store.pauses.holding(envelope.job) == []
    assert zlib.crc32(b"one") in {
        row.output.get("crc") for row in rig.store.results(envelope.job) if row.task == "echo"
    }
