"""Webhooks in the store, on both databases: due with the last result, told by one gateway at a time."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import Table, Update, update

from results_store.gateway import webhooks
from results_store.gateway.webhooks import DueWebhook
from results_store.store import Store
from tests.integration.rows import new_envelope, new_job, result, run_together


def with_webhook(store: Store, job: str, *, finished: bool = True, host: str = "app.example", tenant: str = "") -> None:
    store.add_envelopes([new_envelope(job, job=job)], jobs=[new_job(job, tenant=tenant)])
    store.webhooks.add(job, f"https://{host}/hook")
    if finished:
        store.commit([result(0, job=job, envelope=job)], done=[job])


def test_a_webhook_is_due_with_the_last_result(store: Store) -> None:
    with_webhook(store, "job", finished=False)
    assert store.webhooks.take(10, 60) == []
    store.commit([result(0, job="job", envelope="job")], done=["job"])
    (due,) = store.webhooks.take(10, 60)
    assert (due.job.id, due.job.succeeded, due.url, due.attempts) == ("job", 1, "https://app.example/hook", 0)


def test_a_lease_keeps_others_away_and_ends(store: Store) -> None:
    with_webhook(store, "job")
    assert len(store.webhooks.take(10, -1)) == 1
    assert [due.attempts for due in store.webhooks.take(10, 60)] == [1]
    assert store.webhooks.take(10, 60) == []


def test_many_gateways_share_what_is_due(store: Store, store_url: str) -> None:
    """Each end is told by one of them, and none is left."""
    for number in range(40):
        with_webhook(store, f"job{number:02}")
    taken: list[str] = []

    def gateway() -> None:
        with Store(store_url) as own:
            while due := own.webhooks.take(3, 60):
                taken.extend(one.job.id for one in due)

    threads = [threading.Thread(target=gateway) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(set(taken))
    taken += [due.job.id for due in store.webhooks.take(100, 60)]  # what one skipped while another held it
    assert len(taken) == 40


def test_two_last_commits_at_once_give_one_end(store: Store, store_url: str) -> None:
    """Each of two workers stores the last result that it knows of, at the same moment; one end is told, with both."""
    jobs, both = [f"job{number:02}" for number in range(30)], threading.Barrier(2)
    told: list[DueWebhook] = []
    for job in jobs:
        envelopes = [new_envelope(f"{job}-{number}", job=job) for number in range(2)]
        store.add_envelopes(envelopes, jobs=[new_job(job)])
        store.webhooks.add(job, "https://app.example/hook")

    def worker(number: int) -> None:
        with Store(store_url) as own:
            for job in jobs:
                both.wait(30)
                envelope = f"{job}-{number}"
                own.commit([result(number, job=job, envelope=envelope)], done=[envelope])
                told.extend(own.webhooks.take(10, 60))

    run_together(worker, 2)
    told += store.webhooks.take(100, 60)  # what one skipped while another held it
    assert sorted(due.job.id for due in told) == jobs
    assert {(due.job.succeeded, due.job.finished) for due in told} == {(2, True)}
    for due in told:
        store.webhooks.told(due, 200)
    assert store.webhooks.take(100, -1) == []


def test_busy_hosts_are_left(store: Store) -> None:
    with_webhook(store, "slow", host="slow.example")
    with_webhook(store, "quick")
    assert [due.job.id for due in store.webhooks.take(10, 60, beside=["slow.example"])] == ["quick"]


def test_busy_tenants_are_left(store: Store) -> None:
    with_webhook(store, "greedy", tenant="greedy")
    with_webhook(store, "quick")
    assert [due.job.id for due in store.webhooks.take(10, 60, tenants=["greedy"])] == ["quick"]


def test_an_end_that_was_given_up_is_told_at_another_address(store: Store) -> None:
    """As if it were new. At the same address it stays given up."""
    with_webhook(store, "job")
    (due,) = store.webhooks.take(10, 60)
    store.webhooks.given_up(due, 410, "the host answers 410")
    store.webhooks.add("job", due.url)
    assert store.webhooks.take(10, 60) == []
    store.webhooks.add("job", "https://app.example/right")
    (again,) = store.webhooks.take(10, 60)
    assert (again.url, again.attempts) == ("https://app.example/right", 0)


def test_a_later_end_has_attempts_of_its_own(store: Store) -> None:
    with_webhook(store, "job")
    (due,) = store.webhooks.take(10, 60)
    store.webhooks.given_up(due, 500, "the host answers 500")
    store.add_envelopes([new_envelope("more", job="job")])
    store.webhooks.add("job", due.url)
    store.commit([result(1, job="job", envelope="more")], done=["more"])
    (again,) = store.webhooks.take(10, 60)
    assert (again.job.succeeded, again.attempts) == (2, 0)


def test_a_job_that_opens_while_its_end_is_told_is_told_again(store: Store) -> None:
    with_webhook(store, "job")
    (due,) = store.webhooks.take(10, 60)
    store.add_envelopes([new_envelope("more", job="job")])
    store.webhooks.told(due, 200)
    store.commit([result(1, job="job", envelope="more")], done=["more"])
    store.webhooks.failed(due, None, "later", -1)
    (again,) = store.webhooks.take(10, 60)
    assert again.job.succeeded == 2


def test_the_same_submission_tells_nothing_twice(store: Store) -> None:
    """A caller who missed the answer submits again with the same key."""
    with_webhook(store, "job")
    (due,) = store.webhooks.take(10, 60)
    store.webhooks.told(due, 200)
    store.webhooks.add("job", "https://app.example/other")
    assert store.webhooks.take(10, 60) == []
    found = store.webhooks.find("job")
    assert found is not None
    assert (found.url, found.next_at, found.status) == ("https://app.example/other", None, 200)


def test_a_late_failure_opens_nothing_again(store: Store) -> None:
    """A gateway that was held up hears of its failure after another one has told the end."""
    with_webhook(store, "job")
    (due,) = store.webhooks.take(10, -1)
    store.webhooks.told(due, 200)
    store.webhooks.failed(due, None, "late", -1)
    found = store.webhooks.find("job")
    assert found is not None
    assert (found.next_at, found.status, found.error) == (None, 200, None)


def test_a_job_that_opens_while_its_end_is_taken_is_told_later(
    store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each statement of PostgreSQL sees what was committed before it. SQLite has one writer at a time."""
    if store.sqlite:
        pytest.skip("nobody else writes during a transaction of SQLite")
    with_webhook(store, "job")
    with Store(store_url) as other:

        def opened(table: Table) -> Update:
            monkeypatch.undo()
            other.add_envelopes([new_envelope("more", job="job")])
            return update(table)

        monkeypatch.setattr(webhooks, "update", opened)
        assert store.webhooks.take(10, -1) == []
    store.commit([result(1, job="job", envelope="more")], done=["more"])
    assert [due.job.succeeded for due in store.webhooks.take(10, 60)] == [2]
