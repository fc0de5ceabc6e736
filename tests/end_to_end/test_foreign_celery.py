"""A Celery application with none of our code in it, against the fleet and its result backend."""

from __future__ import annotations

import sqlite3
import zlib
from collections import Counter

import pytest
from celery import Celery, chain, chord, group
from celery.contrib.testing.worker import start_worker
from redis import Redis

from tests.end_to_end.processes import until
from workers.fleet.local import LocalFleet


@pytest.fixture(scope="module")
def fleet(shared_fleet: LocalFleet) -> LocalFleet:
    """One for all of these tests: what one message breaks, the next test sees."""
    return shared_fleet


@pytest.fixture(scope="module")
def app(fleet: LocalFleet):
    """Two URLs and a name are all it knows."""
    foreign = Celery("foreign", broker=fleet.broker_url, backend=f"argosy+{fleet.store_url}", set_as_current=False)
    foreign.conf.update(broker_connection_retry_on_startup=True)
    yield foreign
    foreign.close()


def signature(app: Celery, *texts: str):
    items = [{"seq": n, "input": text, "tasks": ["echo"]} for n, text in enumerate(texts)]
    envelope = {"model": "scripted", "items": items}
    return app.signature("argosy.envelope", args=[envelope], queue="argosy.scripted", immutable=True)


def crcs(answer) -> list[int]:
    return [row["output"]["crc"] for row in answer["results"]]


def test_a_task_sent_by_name_comes_back(app, fleet):
    """`send_task` and `get`, and the results are rows like any others."""
    sent = app.send_task(
        "argosy.envelope",
        [{"model": "scripted", "items": [{"seq": 0, "input": "hello", "tasks": ["echo"]}]}],
        queue="argosy.scripted",
    )
    assert crcs(sent.get(timeout=30)) == [zlib.crc32(b"hello")]
    with sqlite3.connect(fleet.home / "store.db") as database:
        rows = database.execute("SELECT state FROM results WHERE job = ?", (sent.id,)).fetchall()
    database.close()
    assert rows == [("succeeded",)]


def test_a_group_of_envelopes_comes_back_in_order(app):
    """Each through the micro-batches, together with everybody else's."""
    answers = (
        group([signature(app, f"item {n}", f"other {n}") for n in range(20)], app=app).apply_async().get(timeout=60)
    )
    expected = [[zlib.crc32(f"item {n}".encode()), zlib.crc32(f"other {n}".encode())] for n in range(20)]
    assert [crcs(answer) for answer in answers] == expected


def test_a_chain_and_a_chord_run_to_their_end(app):
    """One after the other, and many before one."""
    last = (signature(app, "first") | signature(app, "second")).apply_async()
    assert crcs(last.get(timeout=30)) == [zlib.crc32(b"second")]
    assert crcs(last.parent.get(timeout=30)) == [zlib.crc32(b"first")]
    body = chord([signature(app, f"part {n}") for n in range(8)], app=app)(signature(app, "body"))
    assert crcs(body.get(timeout=30)) == [zlib.crc32(b"body")]


def test_an_unreadable_envelope_is_an_error_at_the_caller(app):
    """Who waits hears what was wrong with it."""
    sent = app.send_task("argosy.envelope", [{"items": []}], queue="argosy.scripted")
    with pytest.raises(Exception, match="model"):
        sent.get(timeout=30)


@pytest.fixture(scope="module")
def heard(app):
    """The application's own worker, on a queue of its own and on the default one: what its tasks were called with."""
    calls: Counter[str] = Counter()

    @app.task(name="my.count")
    def count(*answers):
        calls["count"] += 1
        rows = [
            row
            for answer in answers
            for one in (answer if isinstance(answer, list) else [answer])
            for row in one["results"]
        ]
        return len(rows)

    @app.task(name="my.err")
    def err(*_):
        calls["err"] += 1

    @app.task(name="my.envelope")
    def envelope(_):
        return {"model": "scripted", "items": [{"seq": 0, "input": "made elsewhere", "tasks": ["echo"]}]}

    with start_worker(app, pool="solo", perform_ping_check=False, queues=["mine", "celery"], shutdown_timeout=30):
        yield calls


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("queue", ["mine", None])
def test_the_next_task_lives_on_a_queue_of_the_application(app, queue):
    """Its own queue, or the default one, after an envelope or after many."""
    own = {"queue": queue} if queue else {}
    count = app.signature("my.count", **own)
    assert chain(signature(app, "a", "b"), count, app=app).apply_async().get(timeout=30) == 2
    header = [signature(app, f"part {n}") for n in range(4)]
    assert chord(header, app=app)(count).get(timeout=30) == 4
    assert chain(group(header, app=app), count, app=app).apply_async().get(timeout=30) == 4
    both = chain(signature(app, "a"), group([count, count], app=app), app=app).apply_async()
    assert both.get(timeout=30) == [1, 1]


@pytest.mark.usefixtures("heard")
def test_an_envelope_follows_a_task_of_the_application(app):
    """The chain comes from the application's queue to the fleet's, and goes back."""
    first = app.signature("my.envelope", args=[None], queue="mine")
    middle = app.signature("argosy.envelope", queue="argosy.scripted")
    last = app.signature("my.count", queue="mine")
    assert chain(first, middle, last, app=app).apply_async().get(timeout=30) == 1


def test_links_and_error_links_are_called(app, fleet, heard):
    """80 envelopes that fail, with their error callbacks on the application's queue, leave every slot free."""
    heard.clear()
    signature(app, "linked").apply_async(link=app.signature("my.count", queue="mine"))
    error = app.signature("my.err", queue="mine")
    failing = [app.send_task("argosy.envelope", ["bad"], queue="argosy.scripted", link_error=error) for _ in range(80)]
    until(lambda: heard["err"] == 80 and heard["count"] == 1)
    assert {sent.state for sent in failing} == {"FAILURE"}
    assert crcs(signature(app, "after").apply_async().get(timeout=30)) == [zlib.crc32(b"after")]
    with Redis.from_url(fleet.broker_url) as redis:
        until(lambda: not redis.hlen("unacked"))


def test_a_message_that_waits_for_its_time_holds_no_slot(app, fleet):
    """More of them than the worker has slots; those whose time comes are run."""
    later = [signature(app, f"later {n}").apply_async(countdown=3600) for n in range(100)]
    soon = signature(app, "soon").apply_async(countdown=2)
    assert crcs(signature(app, "now").apply_async().get(timeout=30)) == [zlib.crc32(b"now")]
    assert crcs(soon.get(timeout=30)) == [zlib.crc32(b"soon")]
    with Redis.from_url(fleet.broker_url) as redis:
        until(lambda: redis.hlen("unacked") == len(later))
        redis.delete("unacked", "unacked_index")


def test_what_a_message_may_have_sent_is_bounded(app, fleet):
    """How many tasks, and to which queues: a message that wants more is refused, and the next one is run."""
    many = [app.signature("my.count", queue="mine") for _ in range(1001)]
    app.send_task("argosy.envelope", ["x"], queue="argosy.scripted", link=many)
    app.send_task("argosy.envelope", ["x"], queue="argosy.scripted", link=app.signature("x", queue="unacked"))
    assert crcs(signature(app, "after").apply_async().get(timeout=30)) == [zlib.crc32(b"after")]
    with Redis.from_url(fleet.broker_url) as redis:
        until(lambda: not redis.hlen("unacked"))
        assert not redis.llen("mine")
