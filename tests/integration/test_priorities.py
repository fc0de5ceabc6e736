"""The priority of a job that waits: what no worker holds moves, once, and in both directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Connection, update

from producers.client.client import Client
from producers.commands.main import main
from producers.wire.errors import InvalidInput
from producers.wire.messages import Envelope, Item, Priority
from results_store.errors import StoreUnavailable, TooManyChanges, UnknownJob
from results_store.records import Claim, ResultState
from results_store.sql.database import Weight
from results_store.sql.schema import audit_log, jobs
from results_store.sql.waiting import priorities
from results_store.store import Store
from tests.integration.rows import new_envelope, new_job, result, submit
from tests.integration.test_audit import ANN
from tests.integration.test_execution import Rig, reference, whole
from tests.integration.test_retries import sqlite_only

__all__ = ["sqlite_only"]

BULK, INTERACTIVE = int(Priority.BULK), int(Priority.INTERACTIVE)


@pytest.fixture
def rig(store: Store) -> Iterator[Rig]:
    with Rig(store) as rig:
        yield rig


def overdue(store: Store) -> dict[str, int]:
    return {envelope.id: envelope.priority for envelope in store.take_overdue(overdue_s=1000)}


def test_what_no_worker_holds_moves_and_is_published_again(store: Store) -> None:
    """Accepted and published envelopes; a held one and another job's keep their priority."""
    named = ("accepted", "published", "held")
    store.add_envelopes([new_envelope(name, created_at=None) for name in named], jobs=[new_job()])
    store.add_envelopes([new_envelope("other", job="another", created_at=None)], jobs=[new_job("another")])
    store.mark_published(["published", "held", "other"])
    store.claim(["held"], worker="w", lease_s=60)
    assert overdue(store) == {}
    assert store.prioritize_job("job", INTERACTIVE) == 2
    assert overdue(store) == {"accepted": INTERACTIVE, "published": INTERACTIVE}
    assert store.prioritize_job("job", INTERACTIVE) == 0
    assert overdue(store) == {}
    assert (store.job("job").priority, store.job("another").priority) == (INTERACTIVE, BULK)
    assert {(depth.priority, depth.envelopes) for depth in store.depth()} == {(INTERACTIVE, 2), (BULK, 2)}
    store.release(["held"], worker="w")
    assert store.prioritize_job("job", INTERACTIVE) == 1
    with pytest.raises(UnknownJob):
        store.prioritize_job("none", BULK)


def test_a_late_mark_is_of_an_earlier_message(store: Store) -> None:
    """Producers collect marks for a second: the envelope stays overdue at once, until a reconciler has taken it."""
    store.add_envelopes([new_envelope("e0", created_at=None)], jobs=[new_job()])
    store.prioritize_job("job", INTERACTIVE)
    store.mark_published(["e0"])
    assert overdue(store) == {"e0": INTERACTIVE}
    store.mark_published(["e0"])
    assert overdue(store) == {}
    assert [depth.state for depth in store.depth()] == ["published"]


def test_a_change_waits_until_the_last_one_is_published(store: Store) -> None:
    """Else each change adds a message for each envelope. The same change again is none, and moves what is new."""
    submit(store, envelopes=2)
    assert store.prioritize_job("job", INTERACTIVE) == 2
    store.add_envelopes([new_envelope("late")])
    assert store.prioritize_job("job", INTERACTIVE) == 1
    with pytest.raises(TooManyChanges, match="not published yet") as refused:
        store.prioritize_job("job", BULK)
    assert refused.value.retry_after_s
    assert store.job("job").priority == INTERACTIVE
    assert overdue(store) == dict.fromkeys(("e0", "e1", "late"), INTERACTIVE)
    assert store.prioritize_job("job", BULK) == 3


def test_a_job_changes_once_a_minute(store: Store) -> None:
    """By the audit log; another job's changes are its own, and a replay that waits to be published is no change."""
    submit(store, envelopes=2)
    store.create_job(new_job("another"))
    store.commit([result(0, state=ResultState.FAILED, output=None)], done=["e0"])
    assert store.dead_letters.replay(job="job").envelopes == 1
    assert store.prioritize_job("job", INTERACTIVE, by=ANN) == 2
    overdue(store)
    with pytest.raises(TooManyChanges, match="less than 60 s ago") as refused:
        store.prioritize_job("job", BULK, by=ANN)
    assert 0 < (refused.value.retry_after_s or 0) <= priorities.EVERY_S
    store.prioritize_job("another", INTERACTIVE, by=ANN)
    with store._database.write(Weight.ACCEPTED) as connection:
        connection.execute(update(audit_log).values(at=audit_log.c.at - priorities.EVERY_S))
    assert store.prioritize_job("job", BULK, by=ANN) == 2
    assert [entry.detail for entry in store.audit.newest(text="job:job")] == [{"priority": p} for p in (BULK, 0)]


def test_a_large_job_moves_in_portions(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """So no lock is held for long. A change that ends midway is made whole by the same change."""
    monkeypatch.setattr(priorities, "PORTION", 2)
    submit(store, envelopes=5)
    portions: list[list[str]] = []
    move = priorities._move

    def watched(connection: Connection, job: str, priority: int, ids: Sequence[str]) -> int | None:
        portions.append([*ids])
        if len(portions) == 2:
            raise StoreUnavailable("away")
        return move(connection, job, priority, ids)

    monkeypatch.setattr(priorities, "_move", watched)
    with pytest.raises(StoreUnavailable):
        store.prioritize_job("job", INTERACTIVE, by=ANN)
    assert {(depth.priority, depth.envelopes) for depth in store.depth()} == {(INTERACTIVE, 2), (BULK, 3)}
    assert store.prioritize_job("job", INTERACTIVE, by=ANN) == 3
    assert portions == [["e0", "e1"], ["e2", "e3"], ["e2", "e3"], ["e4"]]


def test_a_change_that_is_overtaken_stops(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The later one moves all envelopes; the earlier one moves none of them back."""
    monkeypatch.setattr(priorities, "PORTION", 2)
    submit(store, envelopes=5)
    move = priorities._move

    def overtaken(connection: Connection, job: str, priority: int, ids: Sequence[str]) -> int | None:
        if "e2" in ids:
            connection.execute(update(jobs).values(priority=BULK))
        return move(connection, job, priority, ids)

    monkeypatch.setattr(priorities, "_move", overtaken)
    assert store.prioritize_job("job", INTERACTIVE) == 2
    assert {(depth.priority, depth.envelopes) for depth in store.depth()} == {(INTERACTIVE, 2), (BULK, 3)}


def test_what_waits_for_the_end_of_a_pause_waits_on(store: Store) -> None:
    store.add_envelopes([new_envelope("e0")], jobs=[new_job()])
    store.pauses.pause("model", "text")
    assert store.claim(["e0"], worker="w", lease_s=60)["e0"].verdict is Claim.WAITING
    assert store.prioritize_job("job", INTERACTIVE) == 1
    assert overdue(store) == {}
    store.pauses.resume("model", "text")
    assert overdue(store) == {"e0": INTERACTIVE}


def bulk(rig: Rig, priority: Priority) -> Envelope:
    return rig.accept(items=tuple(Item(seq, f"text {seq}", ("say",)) for seq in range(10)), priority=priority)


def run_with(rig: Rig) -> list[dict[str, int]]:
    return [batch.priorities for batch in rig.batches]


def test_an_envelope_runs_with_the_priority_that_it_has_now(rig: Rig) -> None:
    """By whichever of its messages it is begun; the other one finds it done."""
    envelope = bulk(rig, Priority.BULK)
    rig.store.prioritize_job(envelope.job, INTERACTIVE)
    assert rig.run(reference(envelope)) == {"items": 10, "succeeded": 10}
    assert {name for one in run_with(rig) for name in one} == {str(INTERACTIVE)}
    assert rig.run(reference(envelope, priority=INTERACTIVE)) == {"skipped": "done"}


def test_an_envelope_that_became_less_urgent_is_not_begun_from_its_earlier_list(rig: Rig) -> None:
    """Else lowering a priority would change nothing: all its messages are in the urgent list."""
    envelope = bulk(rig, Priority.INTERACTIVE)
    rig.store.prioritize_job(envelope.job, BULK)
    assert rig.run(reference(envelope)) == {"skipped": "waiting"}
    assert rig.batches == []
    assert overdue(rig.store) == {envelope.id: BULK}
    assert rig.run(reference(envelope)) == {"skipped": "waiting"}, "nor once it is published"
    assert rig.run(reference(envelope, priority=BULK)) == {"items": 10, "succeeded": 10}
    assert {name for one in run_with(rig) for name in one} == {str(BULK)}
    assert rig.row(envelope)["attempts"] == 1


def test_a_message_with_a_body_is_begun_whatever_priority_it_has(rig: Rig) -> None:
    """While a worker lives that reads no references: the body is that of the submission, in whichever list it lies."""
    envelope = bulk(rig, Priority.INTERACTIVE)
    rig.store.prioritize_job(envelope.job, BULK)
    assert rig.run(whole(envelope)) == {"items": 10, "succeeded": 10}


def test_the_client_and_the_command_change_it(
    sqlite_only: Store, broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(sqlite_only._database.url)
    with Client(broker_url, url) as client:
        job = client.submit_many("topic", ["a", "b"])
        assert job.prioritize("interactive") == 1
        assert job.progress().priority == INTERACTIVE
        with pytest.raises(InvalidInput, match="priority: must be a Priority or its name"):
            job.prioritize("urgent")
    monkeypatch.setenv("ARGOSY_STORE_URL", url)
    refused: Any = CliRunner().invoke(main, ["priority", job.id, "bulk"])
    assert refused.exit_code == 1
    assert "not published yet" in refused.stderr
    overdue(sqlite_only)
    told: Any = CliRunner().invoke(main, ["priority", job.id, "bulk"])
    assert told.stderr == f"job {job.id}: 1 envelopes are bulk now\n"
    assert sqlite_only.job(job.id).priority == BULK
    assert CliRunner().invoke(main, ["priority", job.id, "urgent"]).exit_code == 2
