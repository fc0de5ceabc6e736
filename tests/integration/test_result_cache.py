"""Results of earlier jobs answer the same items of the same tenant, and live no longer than their inputs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from sqlalchemy import func, select

from producers.wire.catalogue import KINDS, Task
from producers.wire.messages import (
    BlobInput,
    Envelope,
    InlineBytes,
    Item,
    PathInput,
    Priority,
    TextAndImageInput,
    UrlInput,
)
from results_store.records import CachedResult, Claim, Claimed
from results_store.sql import retention
from results_store.sql.caching import cached_results as caching
from results_store.sql.database import Weight
from results_store.sql.schema import cached_results, payloads
from results_store.store import Store
from tests.integration.rows import new_envelope, new_job
from tests.integration.test_chunked_envelopes import kept
from tests.integration.test_execution import FAR, Rig, reference
from tests.integration.test_retries import sqlite_only
from workers.envelope import cached_answers
from workers.envelope.cached_answers import ResultCache, _params
from workers.models.interface import class_code
from workers.result_cache_settings import ResultCacheSettings

__all__ = ["sqlite_only"]

TEXTS = tuple(f"text {number}" for number in range(20))

EVERY = ResultCacheSettings(tasks=("echo", "say", "place"))


@pytest.fixture
def rig(store: Store) -> Iterator[Rig]:
    with Rig(store) as rig:
        rig.execution = replace(rig.execution, cache=EVERY)
        yield rig


@pytest.fixture
def lite_rig(sqlite_only: Store) -> Iterator[Rig]:
    """For what does not depend on the database."""
    with Rig(sqlite_only) as rig:
        rig.execution = replace(rig.execution, cache=EVERY)
        yield rig


@pytest.fixture
def cold_rig(sqlite_only: Store) -> Rig:
    """For what only looks up: it has no device."""
    return Rig(sqlite_only)


def accept(
    rig: Rig, texts: Sequence[str] = TEXTS, tasks: tuple[str, ...] = ("say", "place"), **changes: Any
) -> Envelope:
    items = tuple(Item(seq, text, tasks, key=f"k{seq}") for seq, text in enumerate(texts))
    return rig.accept(**{"priority": Priority.BULK, "items": items, "tenant": "acme", **changes})


def computed(rig: Rig) -> int:
    """The items that went through the model."""
    return sum(batch.items for batch in rig.batches)


def number_cached(store: Store) -> int:
    with store._database.read() as connection:
        return connection.execute(select(func.count()).select_from(cached_results)).scalar_one()


def answers(rig: Rig, envelope: Envelope) -> dict[tuple[int, str], tuple[Any, ...]]:
    return {
        (row.seq, row.task): (row.output, row.vector, row.key, row.model_revision, row.precision, row.tokens, row.state)
        for row in rig.store.results(envelope.job)
    }


@pytest.mark.parametrize("in_columns", [False, True])
def test_a_second_submission_computes_nothing(rig: Rig, *, in_columns: bool) -> None:
    """Its answers, its counters and its chunks are those of a computed one; only the batch is missing."""
    first, second = accept(rig, in_columns=in_columns), accept(rig, in_columns=in_columns)
    assert rig.run(reference(first)) == {"items": 20, "succeeded": 40}
    before = computed(rig)
    assert rig.run(reference(second)) == {"items": 20, "succeeded": 40, "cached": 40}
    assert computed(rig) == before == 20
    assert answers(rig, second) == answers(rig, first)
    assert kept(rig.store) == (0, 4)
    status = rig.store.job(second.job)
    assert (status.succeeded, status.total, status.finished) == (40, 40, True)
    assert rig.row(second)["state"] == "done"
    assert rig.run(reference(second)) == {"skipped": "done"}
    assert {row.batch for row in rig.store.results(second.job)} == {None}


def test_changed_code_computes_all(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class whose `finish` was mended answers otherwise, under an unchanged revision of its folder."""
    rig.run(reference(accept(rig)))
    monkeypatch.setattr(class_code, "noted", lambda _: "mended")
    assert "cached" not in rig.run(reference(accept(rig)))
    monkeypatch.setattr(cached_answers, "_VERSION", "later")
    assert "cached" not in rig.run(reference(accept(rig)))
    assert rig.run(reference(accept(rig)))["cached"] == 40


def test_inputs_that_are_dropped_take_the_digests_with_them(rig: Rig) -> None:
    """A worker with `drop_inputs` ends the job of which another worker, with the cache, computed a part."""
    first = accept(rig)
    rig.run(reference(first))
    assert number_cached(rig.store) == 40
    with rig.store._database.write(Weight.NOTE) as connection:
        retention.drop_inputs(connection, [first.id])
    assert number_cached(rig.store) == 0


def test_another_tenant_computes_all(rig: Rig) -> None:
    first, other = accept(rig), accept(rig, tenant="other")
    rig.run(reference(first))
    assert rig.run(reference(other)) == {"items": 20, "succeeded": 40}
    assert computed(rig) == 40


def test_what_is_new_is_computed_beside_what_is_known(rig: Rig) -> None:
    """Some items, and some tasks of an item; also if the new ones are a block."""
    rig.run(reference(accept(rig, TEXTS[:5], ("say",))))
    mixed = accept(rig)
    assert rig.run(reference(mixed)) == {"items": 20, "succeeded": 40, "cached": 5}
    assert set(answers(rig, mixed)) == {(seq, task) for seq in range(20) for task in ("say", "place")}
    more = accept(rig, [*TEXTS, *(f"new {number}" for number in range(15))])
    assert rig.run(reference(more)) == {"items": 35, "succeeded": 70, "cached": 40}
    assert rig.store.job(more.job).finished
    assert computed(rig) == 5 + 20 + 15
    assert kept(rig.store)[1] >= 4, "what is alike is a chunk"


@pytest.mark.parametrize(
    "changes",
    [
        {"items": tuple(Item(seq, text, ("say",), {"say": {"top_k": 2}}) for seq, text in enumerate(TEXTS))},
        {"items": tuple(Item(seq, f"{text}.", ("say",)) for seq, text in enumerate(TEXTS))},
        {"pipeline": True},
    ],
    ids=["parameters", "content", "pipeline"],
)
def test_what_differs_is_not_answered_by_it(lite_rig: Rig, changes: dict[str, Any]) -> None:
    lite_rig.run(reference(accept(lite_rig, tasks=("say",))))
    summary = lite_rig.run(reference(accept(lite_rig, tasks=("say",), **changes)))
    assert "cached" not in summary


def test_parameters_that_are_the_defaults_are_the_same(lite_rig: Rig) -> None:
    plain = tuple(Item(seq, text, ("say",)) for seq, text in enumerate(TEXTS))
    said = tuple(Item(seq, text, ("say",), {"say": {"top_k": 1}}) for seq, text in enumerate(TEXTS))
    lite_rig.run(reference(accept(lite_rig, items=plain)))
    assert lite_rig.run(reference(accept(lite_rig, items=said)))["cached"] == 20


def test_a_new_revision_finds_nothing_and_keeps_nothing_of_the_old(lite_rig: Rig) -> None:
    rig = lite_rig
    rig.run(reference(accept(rig)))
    look = ResultCache(settings=EVERY, offer=rig.execution.offer, store=rig.store).look(
        accept(rig), Claimed(Claim.WORK)
    )
    assert (len(look.found), len(look.envelope.items)) == (40, 0)
    served = rig.execution.offer.now.models["scripted"]
    models = {**rig.execution.offer.now.models, "scripted": replace(served, revision="2")}
    offer = replace(rig.execution.offer.now, models=models)
    other = ResultCache(settings=EVERY, offer=_Fixed(offer), store=rig.store).look(accept(rig), Claimed(Claim.WORK))  # type: ignore[arg-type]
    assert (other.found, len(other.digests)) == ([], 40)
    assert other.new(look.found) == [], "of another revision than it was asked for"


class _Fixed:
    def __init__(self, now: object) -> None:
        self.now = now


def test_failures_are_never_kept(lite_rig: Rig) -> None:
    for _ in range(2):
        envelope = accept(lite_rig, ["raise now", "fine"], ("echo",))
        summary = lite_rig.run(reference(envelope))
        assert summary["failed"] == 1
    assert summary["cached"] == 1
    assert number_cached(lite_rig.store) == 1


@pytest.mark.parametrize(
    "given",
    [
        PathInput("/a"),
        UrlInput("https://example.com/a"),
        BlobInput("j", "b", True),
        TextAndImageInput("what?", UrlInput("https://example.com/a")),
    ],
)
def test_an_input_that_only_names_its_content_is_not_known(cold_rig: Rig, given: Any) -> None:
    """The file behind it may be another tomorrow."""
    envelope = msgspec.structs.replace(accept(cold_rig), items=(Item(0, given, ("say",)), Item(1, "text", ("say",))))
    cache = ResultCache(settings=EVERY, offer=cold_rig.execution.offer, store=cold_rig.store)
    assert set(cache.look(envelope, Claimed(Claim.WORK)).digests) == {(1, "say")}
    whole = msgspec.structs.replace(envelope, items=(Item(0, InlineBytes(b"picture"), ("say",)),))
    assert set(cache.look(whole, Claimed(Claim.WORK)).digests) == {(0, "say")}


def test_what_runs_alone_is_late_or_not_durable_takes_no_answer(cold_rig: Rig) -> None:
    cache = ResultCache(settings=EVERY, offer=cold_rig.execution.offer, store=cold_rig.store)
    envelope = accept(cold_rig)
    for claimed in (Claimed(Claim.WORK, alone=True), Claimed(Claim.UNKNOWN), Claimed(Claim.CANCELLED)):
        assert cache.look(envelope, claimed).digests == {}
    assert cache.look(msgspec.structs.replace(envelope, deadline_at=0.0), Claimed(Claim.WORK)).digests == {}
    assert len(cache.look(envelope, Claimed(Claim.WORK)).digests) == 40


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [
        ({}, True),
        ({"temperature": 0.7}, False),
        ({"temperature": 0.7, "seed": 3}, True),
        ({"stream": True}, False),
    ],
)
def test_what_is_drawn_at_random_is_kept_only_with_its_seed(given: dict[str, Any], *, is_kept: bool) -> None:
    assert (_params(Task("write", KINDS["text-generation"], "writer", ""), given) is not None) is is_kept


@pytest.mark.parametrize("rows", [1000, pytest.param(10_000, marks=pytest.mark.long)])
def test_a_second_submission_of_many_rows_computes_none(lite_rig: Rig, rows: int) -> None:
    """Another tenant's computes all."""

    def submitted(tenant: str) -> int:
        texts, before = [f"row {number}" for number in range(rows)], computed(lite_rig)
        for begin in range(0, rows, 1000):
            envelope = accept(lite_rig, texts[begin : begin + 1000], ("say",), tenant=tenant, in_columns=True)
            assert lite_rig.run(reference(envelope))["succeeded"] == 1000
            assert lite_rig.store.job(envelope.job).finished
        return computed(lite_rig) - before

    assert [submitted("acme"), submitted("acme"), submitted("other")] == [rows, 0, rows]


def test_without_the_setting_nothing_is_kept(lite_rig: Rig) -> None:
    lite_rig.execution = replace(lite_rig.execution, cache=ResultCacheSettings())
    for _ in range(2):
        assert "cached" not in lite_rig.run(reference(accept(lite_rig)))
    assert number_cached(lite_rig.store) == 0


def test_a_replay_takes_what_another_job_computed_since(rig: Rig) -> None:
    """It computes, or finds, only what failed."""
    broken = accept(rig, ["refuse me", "fine"], ("echo",))
    rig.run(reference(broken))
    assert number_cached(rig.store) == 1
    rig.store.dead_letters.replay(job=broken.job)
    again = rig.run(reference(broken))
    assert (again["items"], again["failed"]) == (1, 1)


# --- retention ---


def finished(rig: Rig) -> Envelope:
    envelope = accept(rig)
    rig.run(reference(envelope))
    assert number_cached(rig.store) == 40
    return envelope


def test_a_purge_of_the_job_deletes_its_cached_results(rig: Rig) -> None:
    """Those of a job that took its answers from it stay: they are results of its own."""
    finished(rig)
    second = accept(rig)
    rig.run(reference(second))
    with rig.store._database.write(Weight.NOTE) as connection:
        connection.exec_driver_sql(f"UPDATE jobs SET created_at = {FAR} WHERE id = '{second.job}'")
    assert rig.store.retention.purge(finished_before=FAR / 2).jobs == 1
    assert number_cached(rig.store) == 0
    assert len(answers(rig, second)) == 40


def test_a_purge_of_inputs_deletes_the_digests_that_tell_of_them(rig: Rig) -> None:
    envelope = finished(rig)
    rig.store.retention.purge(finished_before=FAR, keep_results=True)
    assert number_cached(rig.store) == 0
    assert len(answers(rig, envelope)) == 40


def test_a_time_to_live_holds_for_them(rig: Rig) -> None:
    envelope = finished(rig)
    with rig.store._database.write(Weight.NOTE) as connection:
        connection.exec_driver_sql(f"UPDATE jobs SET ttl_s = 1 WHERE id = '{envelope.job}'")
    rig.store.retention.purge(now=rig.store.now() + 10)
    assert number_cached(rig.store) == 0


def test_old_ones_are_forgotten_and_found_no_more(rig: Rig) -> None:
    finished(rig)
    with rig.store._database.read() as connection:
        digests = set(connection.execute(select(cached_results.c.digest)).scalars())
    assert len(rig.store.cached_results.find(digests, keep_s=60)) == 40
    assert rig.store.cached_results.find(digests, keep_s=-60) == {}
    assert rig.store.cached_results.forget(keep_s=60) == 0
    assert rig.store.cached_results.forget(keep_s=-60) == 40


def row(digest: str, envelope: str = "e0") -> CachedResult:
    return CachedResult(digest, "job", envelope, [{"label": "a", "score": 1.0}], None, "fp32", 1)


def test_nothing_is_kept_of_inputs_that_are_gone(store: Store) -> None:
    """A worker that was held up computes an envelope whose inputs were purged meanwhile."""
    store.add_envelopes([new_envelope("e0")], jobs=[new_job()])
    with store._database.write(Weight.NOTE) as connection:
        connection.execute(payloads.delete())
        caching.keep(connection, [row("d0")])
    assert number_cached(store) == 0


def test_a_purge_waits_for_a_commit_that_keeps_results(store: Store) -> None:
    """It then deletes them with the inputs; else a digest would outlive its input."""
    store.add_envelopes([new_envelope("e0")], jobs=[new_job()])
    began, go_on = threading.Event(), threading.Event()

    def commit() -> None:
        with store._database.write(Weight.RESULTS) as connection:
            caching.keep(connection, [row("d0")])
            began.set()
            go_on.wait(30)

    def purge() -> None:
        began.wait(30)
        with store._database.write(Weight.NOTE) as connection:
            connection.exec_driver_sql("UPDATE jobs SET finished_at = 1, total = 0")
        store.retention.purge(finished_before=FAR, keep_results=True)

    threads = [threading.Thread(target=work) for work in (commit, purge)]
    for thread in threads:
        thread.start()
    began.wait(30)
    go_on.set()
    for thread in threads:
        thread.join()
    assert number_cached(store) == 0
