"""Messages put on Redis by hand: each gets a typed error on its own row, or none where it has no row; the worker
lives.
"""

from __future__ import annotations

import base64
import json
import pickle
import re
import zlib
from typing import Any

import pytest
from redis import Redis

from producers import Client
from producers.wire.messages import Priority, new_id
from producers.wire.queues import redis_key
from results_store.records import Result
from results_store.store import Store
from tests.end_to_end.processes import until
from workers.fleet.local import LocalFleet


def test_the_log_tells_the_time(shared_fleet: LocalFleet) -> None:
    """Whoever reads it at night compares it with other logs."""
    first, *_ = (shared_fleet.home / "logs" / "worker-cpu.log").read_text().splitlines()
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO [\w.]+: ", first), first


def put(fleet: LocalFleet, body: bytes, content_type: str, encoding: str = "utf-8") -> str:
    """LPUSH a Celery message with this body, as anybody could who reaches the broker."""
    task = new_id()
    message = {
        "body": base64.b64encode(body).decode(),
        "content-encoding": encoding,
        "content-type": content_type,
        "headers": {"task": "argosy.envelope", "id": task, "lang": "py", "argsrepr": "by hand", "kwargsrepr": "{}"},
        "properties": {
            "correlation_id": task,
            "delivery_info": {"exchange": "", "routing_key": "argosy.scripted"},
            "delivery_tag": new_id(),
            "body_encoding": "base64",
            "priority": 0,
        },
    }
    with Redis.from_url(fleet.broker_url) as redis:
        redis.lpush(redis_key("scripted", Priority.INTERACTIVE), json.dumps(message))
    return task


def envelope(**changes: Any) -> dict[str, Any]:
    whole = {
        "version": 1,
        "id": new_id(),
        "job": new_id(),
        "model": "scripted",
        "priority": 0,
        "queued_at": 1.0,
        "items": [{"seq": 0, "input": "hello", "tasks": ["echo"]}],
    }
    return whole | changes


def celery_body(argument: object) -> bytes:
    return json.dumps([[argument], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]).encode()


def results_of(fleet: LocalFleet, sent: dict[str, Any]) -> dict[int, Result]:
    """The results of an envelope put by hand, once there are any."""
    put(fleet, celery_body(sent), "application/json")
    with Store(fleet.store_url) as store:
        return {row.seq: row for row in until(lambda: store.results(sent["job"]))}


@pytest.fixture(scope="module")
def fleet(shared_fleet: LocalFleet) -> LocalFleet:
    """One for all of these tests: what one message breaks, the next test sees."""
    return shared_fleet


@pytest.fixture
def still_serves(fleet: LocalFleet, client: Client):
    """After each test, the same worker process must answer as if nothing had happened."""
    before = fleet.workers[0].process
    yield
    assert client.submit("echo", "after").result(timeout_s=30)["crc"] == zlib.crc32(b"after")
    assert before is not None
    assert before.poll() is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe not JSON",
        b'{"not": "a body"}',
        celery_body("text where an envelope belongs"),
        celery_body([]),
        celery_body({"version": 1}),
        celery_body(envelope(version=0)),
        celery_body(envelope(version=99)),
        celery_body(envelope(model="nobody's")),
        celery_body(envelope(priority=5)),
        celery_body(envelope(items="no list")),
        celery_body(envelope(id=None)),
        b'[[{"__type__": "x", "__value__": 1}], {}, {}]',
    ],
)
def test_an_unreadable_message_is_put_aside(fleet, still_serves, body):
    """It names no row to fail; it must neither stop the worker nor come back for ever."""
    put(fleet, body, "application/json")
    with Redis.from_url(fleet.broker_url) as redis:
        until(lambda: not redis.llen(redis_key("scripted", Priority.INTERACTIVE)) and not redis.hlen("unacked"))


@pytest.mark.parametrize(
    "raw", [b"", b"garbage", b"{}", b"[]", b'{"body": ""}', b'{"properties": {}, "headers": null}', b"\xff"]
)
def test_what_is_no_message_is_put_aside(fleet, still_serves, raw):
    """Bytes that are not even kombu's end a stock worker; ours reads on."""
    key = redis_key("scripted", Priority.INTERACTIVE)
    with Redis.from_url(fleet.broker_url) as redis:
        redis.lpush(key, raw)
        until(lambda: not redis.llen(key))


def test_pickle_is_never_opened(fleet, still_serves, tmp_path):
    """The content type alone is enough to refuse it."""
    trap = tmp_path / "executed"

    class Trap:
        def __reduce__(self):
            return (open, (str(trap), "w"))

    put(fleet, pickle.dumps([[Trap()], {}, {}]), "application/x-python-serialize", "binary")
    with Redis.from_url(fleet.broker_url) as redis:
        until(lambda: not redis.llen(redis_key("scripted", Priority.INTERACTIVE)))
    assert not trap.exists()


def test_a_malformed_item_costs_only_itself(fleet, still_serves):
    """Its neighbours in the same envelope are computed; it gets a row that says what is wrong."""
    items = [
        {"seq": 0, "input": "good", "tasks": ["echo"]},
        {"seq": 1, "input": 17, "tasks": ["echo"]},
        {"seq": 2, "tasks": ["echo"]},
        {"seq": 3, "input": "unknown task", "tasks": ["divination"]},
        {"seq": 4, "input": "", "tasks": ["echo"]},
        {"seq": 5, "input": "unknown parameter", "tasks": ["echo"], "params": {"echo": {"top_q": 1}}},
        {"seq": 6, "input": {"type": "url", "url": "http://127.0.0.1/"}, "tasks": ["echo"]},
        {"seq": 7, "input": "x" * 200_000, "tasks": ["echo"]},
        {"seq": 8, "input": "one of two", "tasks": ["echo", "divination"]},
        {"seq": 9, "input": "good too", "tasks": ["echo"]},
    ]
    sent = envelope(items=items)
    rows = results_of(fleet, sent)
    assert {seq: row.error["kind"] for seq, row in rows.items() if row.error and seq != 8} == {
        1: "InvalidMessage",
        2: "InvalidMessage",
        3: "UnknownTask",
        4: "InvalidInput",
        5: "InvalidInput",
        6: "InvalidInput",
        7: "InputTooLarge",
    }
    assert rows[0].output == {"crc": zlib.crc32(b"good"), "task": "echo"}
    assert rows[9].state == "succeeded"
    with Store(fleet.store_url) as store:
        both = {row.task: row.state for row in store.results_of(sent["job"], [8])}
    assert both == {"echo": "succeeded", "divination": "failed"}


def test_the_same_item_twice_in_an_envelope_has_one_result(fleet, still_serves):
    """The key of a result is unique: whoever sends a place twice gets the first that ends."""
    twice = [{"seq": 0, "input": "a", "tasks": ["echo"]}, {"seq": 0, "input": "b", "tasks": ["echo"]}]
    rows = results_of(fleet, envelope(items=twice))
    assert rows[0].output["crc"] in (zlib.crc32(b"a"), zlib.crc32(b"b"))
