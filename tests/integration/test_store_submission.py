"""What a producer relies on: accepted once, all or nothing, and visible at once."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection

from results_store.errors import StoreError, SubmissionConflict, UnknownJob
from results_store.records import EnvelopeState, FoundJob, NewJob
from results_store.sql import submission
from results_store.sql.schema import jobs
from results_store.store import Store
from tests.integration.rows import new_envelope, new_job, result, run_together, submit


def test_a_new_job_has_no_progress(store: Store) -> None:
    """A reader that is faster than the submission sees an empty job and not an error."""
    created = store.create_job(new_job(name="reviews"))

    assert created == store.job("job")
    assert (created.name, created.items, created.total, created.done) == ("reviews", 0, 0, 0)


def test_the_same_idempotency_key_finds_the_first_job(store: Store) -> None:
    """A producer that repeats its submission after a crash must get the job it had, not a second one."""
    store.create_job(new_job("first", idempotency_key="2026-11-22"))

    again = store.create_job(new_job("second", idempotency_key="2026-11-22"))

    assert again.id == "first"
    assert [job.id for job in store.jobs()] == ["first"]


def test_one_idempotency_key_at_the_same_time_makes_one_job(store: Store, store_url: str) -> None:
    """Two producers that race with one key must agree on the job."""
    found: list[str] = []

    def create(number: int) -> None:
        with Store(store_url) as own:
            found.append(own.create_job(new_job(f"job-{number}", idempotency_key="key")).id)

    run_together(create, 4)

    assert len(set(found)) == 1
    assert [job.id for job in store.jobs()] == [found[0]]


def test_a_job_that_is_purged_while_it_is_found_is_created(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The insertion meets the old job, and a purge deletes it before it is read."""
    store.create_job(new_job(name="old"))
    find = submission.find_job

    def purged(connection: Connection, job: NewJob) -> FoundJob | None:
        monkeypatch.undo()
        connection.execute(jobs.delete())
        return find(connection, job)

    monkeypatch.setattr(submission, "find_job", purged)
    assert store.create_job(new_job(name="new")).name == "new"
    assert [job.name for job in store.jobs()] == ["new"]


def test_envelopes_are_counted_in_their_job(store: Store) -> None:
    """The total must be right before the first result arrives, or a job could look finished too early."""
    store.create_job(new_job())
    store.add_envelopes([new_envelope("e0", items=64, results=192), new_envelope("e1", items=1, results=3)])

    status = store.job("job")

    assert (status.items, status.total) == (65, 195)


def test_a_job_and_its_envelope_can_come_in_one_transaction(store: Store) -> None:
    """A lone interactive item waits for the disk once, not twice."""
    store.add_envelopes([new_envelope("e0")], jobs=[new_job()])

    assert store.job("job").items == 1


def test_envelopes_of_an_unknown_job_are_refused_whole(store: Store) -> None:
    """All or nothing: the envelope of the known job must not be accepted either."""
    store.create_job(new_job())

    with pytest.raises(UnknownJob, match="'ghost'; create it"):
        store.add_envelopes([new_envelope("e0"), new_envelope("e1", job="ghost")])

    assert store.job("job").items == 0
    assert store.depth() == []


def test_an_envelope_accepted_twice_is_an_error(store: Store) -> None:
    """Counting it twice would leave a job that never finishes."""
    submit(store)

    with pytest.raises(StoreError):
        store.add_envelopes([new_envelope("e0")])

    assert store.job("job").items == 1


def test_going_on_where_another_has_gone_on_is_refused(store: Store) -> None:
    """Of two producers that resume one submission, the second must not add the same items again."""
    submit(store)
    store.add_envelopes([new_envelope("e1")], expected_items=1)

    with pytest.raises(SubmissionConflict, match="no longer has 1 items"):
        store.add_envelopes([new_envelope("e2")], expected_items=1)

    assert store.job("job").items == 2


def test_resuming_at_the_same_time_succeeds_once(store: Store, store_url: str) -> None:
    """The guard must hold under a real race, on both databases."""
    store.create_job(new_job())
    outcomes: list[str] = []

    def resume(number: int) -> None:
        with Store(store_url) as own:
            try:
                own.add_envelopes([new_envelope(f"e{number}")], expected_items=0)
            except SubmissionConflict:
                outcomes.append("refused")
            else:
                outcomes.append("accepted")

    run_together(resume, 4)

    assert sorted(outcomes) == ["accepted", "refused", "refused", "refused"]
    assert store.job("job").items == 1


def test_adding_to_a_finished_job_opens_it_again(store: Store) -> None:
    """Workers may finish the first chunk of a submission before its second chunk is written."""
    submit(store)
    store.commit([result(0)], done=["e0"], at=110.0)
    assert store.job("job").finished_at == 110.0

    store.add_envelopes([new_envelope("e1")])

    assert store.job("job").finished_at is None
    assert not store.job("job").finished


def test_depth_counts_what_is_not_done(store: Store) -> None:
    """An operator sees what waits, by model, priority and state; finished work is not in the way."""
    submit(store, 3, items=10)
    store.add_envelopes([new_envelope(f"v{at}", model="vision", priority=0, created_at=at) for at in (95.0, 90.0)])
    store.mark_published(["e0", "e1"], 101.0)
    store.commit([result(seq, envelope="e1") for seq in range(10)], done=["e1"])

    found = {(d.model, d.priority, d.state): (d.envelopes, d.items, d.results, d.oldest_at) for d in store.depth()}

    assert found == {
        ("text", 9, EnvelopeState.ACCEPTED): (1, 10, 10, 100.0),
        ("text", 9, EnvelopeState.PUBLISHED): (1, 10, 10, 100.0),
        ("vision", 0, EnvelopeState.ACCEPTED): (2, 2, 2, 90.0),
    }


def test_jobs_are_listed_newest_first_page_by_page(store: Store) -> None:
    """Jobs created in the same instant must neither be skipped nor shown twice at a page's edge."""
    for number, created_at in enumerate([1.0, 2.0, 2.0, 2.0, 3.0]):
        store.create_job(new_job(f"job-{number}", created_at=created_at))

    pages = [store.jobs(limit=2)]
    while pages[-1]:
        pages.append(store.jobs(limit=2, before=(pages[-1][-1].created_at, pages[-1][-1].id)))

    assert [job.id for page in pages for job in page] == ["job-4", "job-3", "job-2", "job-1", "job-0"]


def test_an_unknown_job_is_named(store: Store) -> None:
    """The message must say which id, and how to find the right one."""
    with pytest.raises(UnknownJob, match="no job 'nope'; `argosy status` lists"):
        store.job("nope")
    with pytest.raises(UnknownJob, match="'nope'"):
        store.cancel_job("nope", 1.0)


def test_cancelling_twice_keeps_the_first_time(store: Store) -> None:
    """Cancelling is idempotent, and a finished job stays finished."""
    submit(store)

    assert store.cancel_job("job", 120.0).cancelled_at == 120.0
    assert store.cancel_job("job", 130.0).cancelled_at == 120.0


def test_a_finished_job_cannot_be_cancelled(store: Store) -> None:
    """There is nothing left to cancel; saying so would be wrong."""
    submit(store)
    store.commit([result(0)], done=["e0"])

    assert store.cancel_job("job", 120.0).cancelled_at is None
