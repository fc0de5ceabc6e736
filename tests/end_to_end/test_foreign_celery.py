"""A Celery application with none of our code in it, against the fleet and its result backend."""

from __future__ import annotations

import sqlite3
import zlib

import pytest
from celery import Celery, chord, group

from workers.fleet.local import LocalFleet


@pytest.fixture
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
