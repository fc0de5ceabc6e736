"""An idempotency key belongs to one submission: its tasks, its parameters, and its rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import update

from producers.client.client import Client
from producers.client.request import NewItem
from producers.client.sending import intake
from producers.wire import packing
from producers.wire.errors import InvalidInput, KeyConflict
from results_store.errors import SubmissionConflict
from results_store.sql.database import Weight
from results_store.sql.schema import jobs
from results_store.store import Store


@pytest.fixture
def client(broker_url: str, store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(intake, "CHUNK_ITEMS", 4)
    monkeypatch.setattr(packing, "ENVELOPE_ITEMS", 2)
    with Client(broker_url, store_url) as client:
        yield client


ROWS = list("abcdef")
KEY: Any = {"idempotency_key": "nightly"}


@pytest.mark.parametrize(
    ("task", "rows", "options", "difference"),
    [
        ("topic", ROWS, {}, "its tasks are sentiment, here they are topic"),
        (["sentiment", "topic"], ROWS, {}, "its tasks are sentiment, here they are sentiment, topic"),
        ("image-classification", [b"picture"] * 3, {}, "its tasks are sentiment, here they are image-classification"),
        ("sentiment", ROWS, {"params": {"top_k": 2}}, r"its parameters are not \(sentiment.top_k\)"),
        ("sentiment", [*"abcdeX"], {}, "whose tasks are the same .sentiment., but whose rows differ"),
        ("sentiment", [*"Xbcdef"], {}, "rows differ"),
        ("sentiment", [*"abcedf", "g"], {}, "rows differ"),
        ("sentiment", [*ROWS[:5], NewItem("f", key="f")], {}, "rows differ"),
        ("sentiment", [*ROWS[:5], NewItem("f", params={"top_k": 2})], {}, "rows differ"),
        ("sentiment", ROWS[:4], {}, "has 2 more rows"),
        ("sentiment", [], {}, "has 6 more rows"),
    ],
)
def test_a_key_is_refused_for_another_submission(
    client: Client, task: Any, rows: list[object], options: dict[str, Any], difference: str
) -> None:
    """Its caller would get the first one's answers, or a job that mixes both and never ends."""
    job = client.submit_many("sentiment", ROWS, **KEY)
    with pytest.raises(KeyConflict, match=rf"^idempotency_key: belongs to the job {job.id}, .*{difference}") as caught:
        client.submit_many(task, rows, **KEY, **options)
    assert isinstance(caught.value, SubmissionConflict)
    assert isinstance(caught.value, InvalidInput)
    assert (job.progress().items, len(client.jobs())) == (6, 1)


@pytest.mark.parametrize(
    ("task", "rows", "options"),
    [
        (["sentiment", "topic"], ["a", NewItem("b", params={"topic": {"top_k": 1, "truncation": True}})], {}),
        (["topic", "sentiment"], ["a", NewItem("b", params={"topic": {"truncation": True, "top_k": 1}})], {}),
    ],
    ids=["as before", "in another order"],
)
def test_the_same_submission_finds_its_job(client: Client, task: Any, rows: Any, options: dict[str, Any]) -> None:
    """The order of tasks and of parameters means nothing."""
    first = client.submit_many(
        ["sentiment", "topic"],
        ["a", NewItem("b", params={"topic": {"top_k": 1, "truncation": True}})],
        params={"topic": {"top_k": 2}, "sentiment": {"top_k": 1}},
        **KEY,
    )
    options["params"] = {"sentiment": {"top_k": 1}, "topic": {"top_k": 2}}
    again = client.submit_many(task, rows, **KEY, **options)
    assert (again.id, again.found, again.progress().items) == (first.id, 2, 2)


def test_more_rows_after_the_same_ones_are_added(client: Client) -> None:
    """However the two runs divide them into chunks; a third run knows them all."""
    for number in (1, 5, 6, 11):
        job = client.submit_many("topic", [*"abcdefghijk"[:number]], **KEY)
    assert (job.found, job.progress().items) == (6, 11)
    with pytest.raises(KeyConflict, match="rows differ"):
        client.submit_many("topic", [*"abcdefghijX"], **KEY)


@pytest.mark.parametrize("kept", [{"request": None}, {"request": None, "fingerprint": None}, {"fingerprint": "5:00"}])
def test_a_job_of_an_older_version_goes_on_as_before(client: Client, store: Store, kept: dict[str, Any]) -> None:
    """It has no marks, or an older process added rows behind them: they are not known, so they are not compared."""
    job = client.submit_many("topic", ROWS, **KEY)
    with store._database.write(Weight.ACCEPTED) as connection:
        connection.execute(update(jobs).values(**kept))
    again = client.submit_many("topic", [*"abcXef", "g"], **KEY)
    assert (again.id, again.found, again.progress().items) == (job.id, 6, 7)


def test_a_key_of_a_cancelled_job_is_refused(client: Client) -> None:
    """Further items would never be computed."""
    client.submit_many("topic", ROWS, **KEY).cancel()
    with pytest.raises(KeyConflict, match="which was cancelled"):
        client.submit_many("topic", ROWS, **KEY)


def test_parameters_that_a_database_cannot_hold_as_text_are_recognised(client: Client) -> None:
    """NUL is no character of PostgreSQL's texts."""
    options: Any = {"params": {"ignore_labels": ["a\0b", "ü"]}, **KEY}
    job = client.submit_many("entities", ["a\0b"], **options)
    assert client.submit_many("entities", ["a\0b"], **options).id == job.id
