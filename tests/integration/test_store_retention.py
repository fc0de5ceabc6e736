"""What is removed when its time is over, and what stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import pytest
from sqlalchemy import Connection, Table, func, select

from results_store.errors import StoreError, UnknownJob
from results_store.records import Purged, ResultState, Transaction
from results_store.sql.chunks.packed_rows import packed
from results_store.sql.database import Database, Weight
from results_store.sql.retention import FIRST_ITEM_S, STRAY_S, Retention
from results_store.sql.schema import batches, cached_results, envelopes, jobs, payloads, purged_jobs, results
from results_store.store import Store
from results_store.writer import Writer
from tests.integration.rows import batch, new_envelope, new_job, result, run_together, submit

NOW = 1_000.0


def finished(store: Store, job: str, *, at: float, items: int = 2, ttl_s: float | None = None) -> None:
    """A job of `items` one-item envelopes, each done, the last at `at`."""
    ids = [f"{job}-{number}" for number in range(items)]
    store.add_envelopes([new_envelope(id_, job=job) for id_ in ids], jobs=[new_job(job, ttl_s=ttl_s)])
    store.commit([result(n, job=job, envelope=id_) for n, id_ in enumerate(ids)], done=ids, at=at)


def hidden(url: str, job: str, at: float) -> None:
    """Hide a job like a purge that is killed before it deletes the rest."""
    database = Database(url, timeout_s=30)
    database.open()
    with database.write(Weight.ACCEPTED) as connection:
        connection.execute(jobs.delete().where(jobs.c.id == job))
        connection.execute(purged_jobs.insert(), [{"job": job, "purged_at": at}])
    database.close()


class Interrupted(Database):
    """A database that calls `between` once, after its first writing transaction."""

    def __init__(self, url: str, between: Callable[[], object]) -> None:
        super().__init__(url, timeout_s=30)
        self._between = [between]

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def write(self, weight: Weight, **options: bool) -> Iterator[Connection]:
        with super().write(weight, **options) as connection:
            yield connection
        if self._between:
            self._between.pop()()


def rows_left(url: str) -> dict[str, int]:
    database = Database(url, timeout_s=30)
    database.open()
    with database.read() as connection:
        tables = (jobs, envelopes, payloads, results, batches, purged_jobs)
        left = {each.name: connection.execute(select(func.count()).select_from(each)).scalar_one() for each in tables}
    database.close()
    return left


def test_old_jobs_go_with_all_that_is_theirs(store: Store, store_url: str) -> None:
    """Privacy as much as space: no input and no result may stay behind without its job."""
    finished(store, "old", at=NOW)
    finished(store, "new", at=NOW + 100)
    submit(store)
    store.commit([], batches=[batch("b0", started_at=NOW), batch("b1", started_at=NOW + 100)])

    purged = store.retention.purge(finished_before=NOW + 50)

    assert purged == Purged(jobs=1, envelopes=2, payloads=2, results=2, batches=1)
    assert sorted(job.id for job in store.jobs()) == ["job", "new"]
    with pytest.raises(UnknownJob):
        store.job("old")
    assert store.results("old") == []
    assert rows_left(store_url) == {
        "jobs": 2,
        "envelopes": 3,
        "payloads": 3,
        "results": 2,
        "batches": 1,
        "purged_jobs": 0,
    }


def test_a_jobs_own_time_to_live_goes_before_the_general_one(store: Store) -> None:
    """Whoever submitted it knew how long it is needed, or how soon it must be gone."""
    finished(store, "brief", at=NOW, ttl_s=10)
    finished(store, "long", at=NOW, ttl_s=10_000)
    finished(store, "plain", at=NOW)

    assert store.retention.purge(now=NOW + 9).jobs == 0
    assert store.retention.purge(now=NOW + 11).jobs == 1
    assert store.retention.purge(finished_before=NOW + 12, now=NOW + 12).jobs == 1
    assert [job.id for job in store.jobs()] == ["long"]


def test_what_is_not_finished_stays(store: Store) -> None:
    """Somebody still waits for it, however old it is."""
    submit(store)

    assert store.retention.purge(finished_before=NOW * 1e9, now=NOW * 1e9) == Purged()


def test_a_job_that_never_got_an_item_goes_too(store: Store) -> None:
    """It cannot finish, and nobody waits for nothing."""
    store.create_job(new_job("empty"))

    assert store.retention.purge(finished_before=99.0).jobs == 0
    assert store.retention.purge(finished_before=101.0).jobs == 1


def test_an_empty_job_goes_when_its_own_time_to_live_is_over(store: Store) -> None:
    """Its first item may be slow to come, so it is given an hour for that; one that has work to do stays as before."""
    store.create_job(new_job("empty", ttl_s=10))
    store.add_envelopes([new_envelope("e0", job="running")], jobs=[new_job("running", ttl_s=10)])

    assert store.retention.purge(now=100 + 10 + FIRST_ITEM_S).jobs == 0
    assert store.retention.purge(now=101 + 10 + FIRST_ITEM_S).jobs == 1
    assert [job.id for job in store.jobs()] == ["running"]


def test_only_the_inputs_may_go(store: Store, store_url: str) -> None:
    """Results are kept for years where the texts they came from must not be."""
    finished(store, "old", at=NOW)
    finished(store, "new", at=NOW + 100)

    assert store.retention.purge(finished_before=NOW + 50, keep_results=True) == Purged(payloads=2)

    assert store.job("old").finished
    assert len(store.results("old")) == 2
    assert rows_left(store_url)["payloads"] == 2


def test_large_jobs_are_removed_in_portions(store: Store, store_url: str) -> None:
    """A transaction over ten million rows would hold up every worker for minutes."""
    for number in range(5):
        finished(store, f"job-{number}", at=NOW, items=10)

    database = Database(store_url, timeout_s=30)
    database.open()
    retention = Retention(database, jobs=2, rows=7)
    assert retention.purge(finished_before=NOW + 1) == Purged(jobs=5, envelopes=50, payloads=50, results=50)
    database.close()
    assert set(rows_left(store_url).values()) == {0}


def test_inputs_of_many_jobs_are_removed_page_by_page(store: Store, store_url: str) -> None:
    """Each job once, however many are due."""
    for number in range(5):
        finished(store, f"job-{number}", at=NOW)
    database = Database(store_url, timeout_s=30)
    database.open()
    retention = Retention(database, jobs=2, rows=7)
    assert retention.purge(finished_before=NOW + 1, keep_results=True) == Purged(payloads=10)
    database.close()
    left = rows_left(store_url)
    assert (left["jobs"], left["results"], left["payloads"]) == (5, 10, 0)


@pytest.mark.parametrize("at", [NOW + 1, 50.0])
def test_a_purge_that_was_killed_is_finished_by_the_next(store: Store, store_url: str, at: float) -> None:
    """The job is out of sight at once; what was left of it must not stay for ever, even if a clock was set back."""
    finished(store, "old", at=NOW)
    hidden(store_url, "old", at)

    assert store.retention.purge() == Purged(envelopes=2, payloads=2, results=2)
    assert set(rows_left(store_url).values()) == {0}


def test_what_a_purged_job_gets_again_stays(store: Store, store_url: str) -> None:
    """A client creates the job of its lone items again, under the same id, before the old rows are deleted."""
    finished(store, "stream", at=NOW)
    hidden(store_url, "stream", NOW + 1)
    again = [new_envelope(f"again-{n}", job="stream", created_at=NOW + 2, items=8, results=8) for n in range(2)]
    store.add_envelopes(again, jobs=[new_job("stream", created_at=NOW + 2)])
    output = [{"label": "sport", "score": 0.5}]
    [chunk], _ = packed([result(10 + n, job="stream", envelope="again-0", output=output) for n in range(8)])
    row = result(20, job="stream", envelope="again-1")
    store.transact(Transaction(results=[row], chunks=[chunk], done=["again-0"], at=NOW + 3))

    assert store.retention.purge() == Purged(envelopes=2, payloads=2, results=2)

    assert set(store.inputs(["again-0", "again-1"])) == {"again-0", "again-1"}
    assert [row.seq for row in store.results("stream")] == [*range(10, 18), 20]
    left = rows_left(store_url)
    assert (left["envelopes"], left["payloads"], left["purged_jobs"]) == (2, 2, 0)


def test_a_job_may_be_purged_twice_before_its_rows_are_deleted(store: Store, store_url: str) -> None:
    """It was created again under the same id, finished, and is due again."""
    finished(store, "stream", at=NOW)
    hidden(store_url, "stream", NOW + 1)
    store.add_envelopes([new_envelope("again", job="stream", created_at=NOW + 2)], jobs=[new_job("stream")])
    store.commit([result(10, job="stream", envelope="again")], done=["again"], at=NOW + 3)

    assert store.retention.purge(finished_before=NOW + 4) == Purged(jobs=1, envelopes=3, payloads=3, results=3)
    assert set(rows_left(store_url).values()) == {0}


def test_a_sweep_ends_no_later_purge_of_the_same_job(
    store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job comes again and is hidden again while another purge deletes its first rows."""
    finished(store, "stream", at=NOW)
    hidden(store_url, "stream", NOW + 1)

    remove = store.retention._remove

    def removed(rows: Table, condition: Any) -> int:
        count = remove(rows, condition)
        if rows is cached_results:  # the last of them
            monkeypatch.undo()
            store.add_envelopes([new_envelope("again", job="stream", created_at=NOW + 2)], jobs=[new_job("stream")])
            store.commit([result(10, job="stream", envelope="again")], done=["again"], at=NOW + 3)
            with Interrupted(store_url, killed) as database, pytest.raises(KeyboardInterrupt):
                Retention(database).purge(finished_before=NOW + 4)
        return count

    def killed() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store.retention, "_remove", removed)
    assert store.retention.purge() == Purged(envelopes=3, payloads=3, results=3)
    assert set(rows_left(store_url).values()) == {0}


@pytest.mark.parametrize("pipelines", [False, True])
def test_inputs_of_a_job_that_opens_again_meanwhile_stay(store: Store, store_url: str, pipelines: bool) -> None:
    """Its later envelopes are still to be computed."""
    finished(store, "old", at=NOW)
    with store._database.write(Weight.ACCEPTED) as connection:
        connection.execute(jobs.update().values(pipeline={"steps": []} if pipelines else None))

    def later() -> None:
        store.add_envelopes([new_envelope("later", job="old")])

    with Interrupted(store_url, later) as database:
        retention = Retention(database, rows=1)
        if pipelines:
            retention.drop_inputs_of_pipelines()
        else:
            retention.purge(finished_before=NOW + 1, keep_results=True)

    assert set(store.inputs(["old-0", "old-1", "later"])) == {"old-1", "later"}


def test_results_of_no_job_go_when_they_are_old(store: Store) -> None:
    """A message computed once more after its job was purged, or put on Redis by hand, leaves results behind."""
    finished(store, "kept", at=NOW)
    for job in ("gone", "zone"):
        store.commit([result(0, job=job), result(1, job=job, stored_at=NOW + 100)], at=NOW)

    assert store.retention.purge(finished_before=NOW).results == 0
    assert store.retention.purge(finished_before=NOW + 1, keep_results=True).results == 0
    assert store.retention.purge(finished_before=NOW + 0.5, now=NOW).results == 4
    assert [row.seq for row in store.results("gone")] == [1]


def test_results_of_no_job_go_by_themselves_after_a_day(store: Store) -> None:
    """Of a message of another Celery application; whoever wants to keep results longer submits them as a job."""
    finished(store, "kept", at=NOW)
    store.commit([result(0, job="foreign", envelope="u")], unlisted=["u"], at=NOW)

    assert store.retention.purge(now=NOW + STRAY_S).results == 0
    assert store.retention.purge(now=NOW + STRAY_S + 1) == Purged(results=1)
    assert len(store.results("kept")) == 2


def test_only_the_file_of_sqlite_is_vacuumed(store: Store) -> None:
    """PostgreSQL has its autovacuum, and a command of its own that locks whole tables."""
    if store._database.sqlite:
        assert store.retention.vacuum() >= 0
    else:
        with pytest.raises(StoreError, match="leave out --vacuum"):
            store.retention.vacuum()


def test_purges_at_the_same_time_share_the_work(store: Store, store_url: str) -> None:
    """Every node purges; none may fail because another was there."""
    for number in range(8):
        finished(store, f"job-{number}", at=NOW)
    purged: list[int] = []

    def purge(_: int) -> None:
        with Store(store_url) as own:
            purged.append(own.retention.purge(finished_before=NOW + 1).jobs)

    run_together(purge, 4)

    assert sum(purged) == 8
    assert set(rows_left(store_url).values()) == {0}


def test_a_purged_idempotency_key_is_free_again(store: Store) -> None:
    """The day's job of a year ago must not stand in the way of today's."""
    store.create_job(new_job("first", idempotency_key="daily"))
    store.retention.purge(finished_before=101.0)

    assert store.create_job(new_job("second", idempotency_key="daily")).id == "second"


def test_inputs_are_kept_unless_told_otherwise(store: Store, store_url: str) -> None:
    """A replay needs them."""
    submit(store)
    store.commit([result(0)], done=["e0"])

    assert rows_left(store_url)["payloads"] == 1


def test_inputs_are_dropped_after_success_if_so_configured(store: Store, store_url: str) -> None:
    """Only after success: what failed, now or in an earlier part of the envelope, can still be replayed."""
    submit(store, 3, items=2)
    bad = {"state": ResultState.FAILED, "output": None, "error": {"kind": "X", "message": ""}}
    with Writer(store, worker="w1", lease_s=60, drop_inputs=True) as committer:
        committer.commit(Transaction(results=[result(0), result(1)], done=["e0"]))
        committer.commit(Transaction(results=[result(2, envelope="e1"), result(3, envelope="e1", **bad)], done=["e1"]))
        committer.commit(Transaction(results=[result(4, envelope="e2", **bad)]))
        assert rows_left(store_url)["payloads"] == 2
        committer.commit(Transaction(results=[result(5, envelope="e2")], done=["e2"]))

    assert rows_left(store_url)["payloads"] == 2
    assert store.dead_letters.replay().envelopes == 2
