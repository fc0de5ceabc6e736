"""A Celery application with none of our code in it, against the fleet and its result backend."""

from __future__ import annotations

import sqlite3
import zlib
from collections import Counter

import pytest
from celery import Celery, chain, chord, group
from celery.contrib.testing.worker import start_worker
from celery.exceptions import NotRegistered
from redis import Redis

from producers import Client
from results_store.store import Store
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


def test_what_an_envelope_asks_for_is_done_or_refused(app):
    """A misspelt field, parameters for another task, and a number that two items have, were dropped in silence."""

    def sent(*items, **fields):
        envelope = {"model": "scripted", "items": [{"seq": 0, "tasks": ["echo"], **item} for item in items], **fields}
        return app.send_task("argosy.envelope", [envelope], queue="argosy.scripted").get(timeout=30)

    with pytest.raises(Exception, match="'deadline_s' is not a field; did you mean 'deadline_at'"):
        sent({"input": "a"}, deadline_s=5)
    with pytest.raises(Exception, match="queued_at"):
        sent({"input": "a"}, queued_at=float("inf"))
    [row] = sent({"input": "a", "params": {"eco": {"top_k": 2}}})["results"]
    assert row["error"]["message"].startswith("params.eco: is not a task of the item")
    rows = sent({"input": "a"}, {"input": "b"})["results"]
    assert {row["seq"]: row["state"] for row in rows} == {0: "succeeded", 1: "failed"}


@pytest.fixture(scope="module")
def heard(app):
    """The application's own worker, on a queue of its own and on the default one: what its tasks were called with."""
    calls: Counter[str] = Counter()

    @app.task(name="my.count", shared=False)
    def count(*answers):
        calls["count"] += 1
        rows = [
            row
            for answer in answers
            for one in (answer if isinstance(answer, list) else [answer])
            for row in one["results"]
        ]
        return len(rows)

    @app.task(name="my.err", shared=False)
    def err(*_):
        calls["err"] += 1

    @app.task(name="my.envelope", shared=False)
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
    """More of them than a worker takes from a list; those whose time comes are run."""
    later = [signature(app, f"later {n}").apply_async(countdown=3600) for n in range(300)]
    soon = signature(app, "soon").apply_async(countdown=2)
    assert crcs(signature(app, "now").apply_async().get(timeout=30)) == [zlib.crc32(b"now")]
    assert crcs(soon.get(timeout=30)) == [zlib.crc32(b"soon")]
    with Redis.from_url(fleet.broker_url) as redis:
        until(lambda: redis.hlen("unacked") == len(later))
        redis.delete("unacked", "unacked_index")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"serializer": "pickle"}, "content type is refused; send application/json"),
        ({"serializer": "yaml"}, "content type is refused"),
        ({"compression": "zlib"}, "send the message without `compression`"),
        ({"headers": {"timelimit": "soon"}}, "headers: "),
    ],
)
def test_a_sender_hears_of_a_refusal(app, change, reason):
    """Nobody waits for ever for a message that workers do not read."""
    refused = app.send_task("argosy.envelope", [{}], queue="argosy.scripted", **change)
    with pytest.raises(Exception, match=reason):
        refused.get(timeout=30)


def test_a_sender_of_an_older_protocol_or_of_an_unknown_task_hears_of_it(app):
    """Celery's protocol 1, and the class of error that Celery has for a name."""
    app.conf.task_protocol = 1
    app.amqp.__dict__.pop("create_task_message", None)  # made once
    try:
        old = app.send_task("argosy.envelope", [{}], queue="argosy.scripted")
    finally:
        app.conf.task_protocol = 2
        app.amqp.__dict__.pop("create_task_message", None)
    with pytest.raises(Exception, match="protocol 2"):
        old.get(timeout=30)
    # Celery's own would send to another broker, or come again every second
    for name in ("argosy.letter", "celery.chunks", "celery.chord_unlock"):
        with pytest.raises(NotRegistered, match=name.replace(".", r"\.")):
            app.send_task(name, [app.signature("my.count"), [[1]], 1], queue="argosy.scripted").get(timeout=30)


@pytest.mark.parametrize(
    "options", [{}, {"priority_steps": list(range(10))}, {"priority_steps": list(range(10)), "sep": ":"}]
)
def test_a_message_of_any_priority_is_run(fleet, options):
    """By the steps of Celery, by ten, and by the separator of Celery's documentation; also when they come again."""
    own = Celery("prioritised", broker=fleet.broker_url, backend=f"argosy+{fleet.store_url}", set_as_current=False)
    own.conf.broker_transport_options = options
    for _ in range(2):
        sent = [signature(own, f"item {n}").set(priority=n).apply_async() for n in range(10)]
        assert [crcs(one.get(timeout=30)) for one in sent] == [[zlib.crc32(f"item {n}".encode())] for n in range(10)]
    own.close()


@pytest.mark.usefixtures("heard")
def test_a_successor_goes_to_a_list_that_its_application_reads(app):
    """An application with Celery's own steps has no lists for the priorities between them."""
    for priority in range(10):
        count = app.signature("my.count", queue="mine", priority=priority)
        assert chain(signature(app, "a"), count, app=app).apply_async().get(timeout=30) == 1


def test_a_revoke_leaves_no_job_unfinished(app, fleet, tmp_path):
    """Before, while and after its envelopes run, with `terminate`, and from a worker that starts beside; nor does it
    when the job is replayed.
    """
    held = tmp_path / "held"
    with Client(fleet.broker_url, fleet.store_url) as client, Store(fleet.store_url) as store:
        client.submit("echo", f"hold {held}")
        until(held.exists)
        job = client.submit_many(["echo"], ["refuse this", *(f"text {n}" for n in range(6000))])
        with sqlite3.connect(fleet.home / "store.db") as database:
            ids = [id_ for (id_,) in database.execute("SELECT id FROM envelopes WHERE job = ?", (job.id,))]
        database.close()
        assert len(ids) > 64, "more than the worker has slots"
        _revoke(app, ids)
        held.unlink()
        job.wait(timeout_s=60)
        assert store.dead_letters.replay(job=job.id).results == 1
        _revoke(app, ids)
        job.wait(timeout_s=60)
        progress = job.progress()
        assert (progress.succeeded, progress.failed, progress.total) == (6000, 1, 6001)


def _revoke(app, ids):
    """Revoke the ids as Celery and Flower do, and as a worker does that starts, and wait until the worker has heard."""
    names = [name for reply in app.control.ping(timeout=1) for name in reply if name.startswith("argosy")]
    app.control.revoke(ids, destination=names, terminate=True, reply=True, limit=1, timeout=5)
    app.control.inspect(names, timeout=5, limit=1).hello("another@host", revoked=ids)


def test_what_a_message_may_have_sent_is_bounded(app, fleet):
    """How many tasks, and to which queues: a message that wants more is refused, and the next one is run."""
    many = [app.signature("my.count", queue="mine") for _ in range(1001)]
    app.send_task("argosy.envelope", ["x"], queue="argosy.scripted", link_error=many)  # they would be sent
    app.send_task("argosy.envelope", ["x"], queue="argosy.scripted", link_error=app.signature("x", queue="unacked"))
    assert crcs(signature(app, "after").apply_async().get(timeout=30)) == [zlib.crc32(b"after")]
    with Redis.from_url(fleet.broker_url) as redis:
        until(lambda: not redis.hlen("unacked"))
        assert not redis.llen("mine")
