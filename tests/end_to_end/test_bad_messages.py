"""Messages put on Redis by hand: each gets a typed error on its own row, or none where it has no row; the worker
lives.
"""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
import re
import time
import zlib
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from producers import Client
from producers.commands.main import main
from producers.wire.messages import Priority, new_id
from producers.wire.queues import REFUSED, redis_key, refused_messages
from results_store.records import Result
from results_store.store import Store
from tests.end_to_end.processes import until
from workers.fleet import doctor
from workers.fleet.local import LocalFleet


def test_the_log_tells_the_time(shared_fleet: LocalFleet) -> None:
    """Whoever reads it at night compares it with other logs."""
    first, *_ = (shared_fleet.home / "logs" / "worker-cpu.log").read_text().splitlines()
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO [\w.]+: ", first), first


def put(fleet: LocalFleet, body: bytes, content_type: str, encoding: str = "utf-8") -> str:
    """LPUSH a Celery message with this body, as anybody could who reaches the broker."""
    changes = {"body": base64.b64encode(body).decode(), "content-type": content_type, "content-encoding": encoding}
    message = whole(**changes)
    push(fleet, json.dumps(message))
    return str(message["headers"]["id"])


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


def whole(**changes: Any) -> dict[str, Any]:
    """A message that is run, but for the changes: `properties.priority=…` is written `properties__priority=…`."""
    task = new_id()
    message: dict[str, Any] = {
        "body": base64.b64encode(celery_body(envelope(durable=False))).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": "argosy.envelope", "id": task, "lang": "py", "argsrepr": "by hand", "kwargsrepr": "{}"},
        "properties": {
            "correlation_id": task,
            "delivery_info": {"exchange": "", "routing_key": "argosy.scripted"},
            "delivery_tag": new_id(),
            "body_encoding": "base64",
            "priority": 0,
        },
    }
    for place, value in changes.items():
        inner = message
        *path, name = place.split("__")
        for step in path:
            inner = inner[step]
        inner[name] = value
    return message


def push(fleet: LocalFleet, *raw: bytes | str) -> None:
    with Redis.from_url(fleet.broker_url) as redis:
        redis.lpush(redis_key("scripted", Priority.INTERACTIVE), *raw)


def nothing_is_held(fleet: LocalFleet) -> None:
    with Redis.from_url(fleet.broker_url) as redis:
        until(lambda: not redis.llen(redis_key("scripted", Priority.INTERACTIVE)) and not redis.hlen("unacked"))


DEEP = "[" * 100_000 + "]" * 100_000
HOSTILE = [
    {"headers__task": []},
    {"headers__task": {}},
    {"headers__id": None},
    {"headers__id": 5},
    {"headers__id": "\ud800"},
    {"headers__eta": ""},
    {"headers__eta": "9999999-01-01"},
    {"headers__expires": []},
    {"headers__timelimit": 5},
    {"headers__timelimit": [1]},
    {"headers__stamped_headers": 5},
    {"headers__callbacks": 5},
    {"headers__get": 5},
    {"headers__delivery_info": 5},
    {"headers___children": 5},
    {"headers": None},
    {"headers": []},
    {"headers": {"task": {}}},
    {"headers__compression": "zlib"},
    {"content-type": "application/data", "content-encoding": "zlib"},
    {"headers__task": "celery.map"},
    {"headers__task": "celery.chord_unlock"},
    {"headers__task": "celery.backend_cleanup"},
    {"headers__task": "celery.backend_cleanup", "body": ""},
    {"headers__task": "nobody's"},
    {"headers": {}, "body": base64.b64encode(b'{"task": {}}').decode()},
    {"headers": {}, "body": base64.b64encode(b'{"task": "argosy.envelope", "id": "x", "args": []}').decode()},
    {"properties__delivery_tag": None},
    {"properties__delivery_tag": []},
    {"properties__delivery_info": []},
    {"properties__delivery_info__routing_key": []},
    {"properties__delivery_info__exchange": {}},
    {"properties__priority": float("inf")},
    {"properties__priority": []},
    {"properties__priority": {"__type__": "decimal", "__value__": "1e99999999"}},
    {"properties__body_encoding": []},
    {"properties": None},
    {"body": base64.b64encode(b'[[1], {}, {"callbacks": 5}]').decode()},
    {"body": base64.b64encode(b'[[1], {}, {"errbacks": [{}]}]').decode()},
    {"body": base64.b64encode(b'[[1], {}, {"chain": [{"task": []}]}]').decode()},
    {"body": base64.b64encode(b'[[1], {}, {"chord": {"task": 1}}]').decode()},
    {"body": base64.b64encode(b'[[1], {}, {"id": []}]').decode()},
    {"body": base64.b64encode(b'[[1], {}, {"delivery_info": 5}]').decode()},
    {"body": base64.b64encode(b'[[1, 2], {"x": 3}, {}]').decode()},
    {"body": base64.b64encode(DEEP.encode()).decode()},
]


@pytest.mark.parametrize("changes", HOSTILE, ids=[f"{next(iter(changes))}-{n}" for n, changes in enumerate(HOSTILE)])
def test_a_hostile_message_keeps_no_slot(fleet, still_serves, changes):
    """More of them than the worker has slots: each is acknowledged, and the queue goes on."""
    message = json.dumps(whole(**changes)).replace("Infinity", "1e999")
    push(fleet, *[message] * 70)
    nothing_is_held(fleet)


def test_deep_headers_end_no_worker(fleet, still_serves):
    push(fleet, DEEP, json.dumps(whole(headers__deep="?")).replace('"?"', DEEP))
    nothing_is_held(fleet)


def test_a_refused_message_is_found_by_its_digest(fleet, still_serves):
    """In the list that `argosy dead` shows, and in the log; its body is in neither."""
    message = json.dumps(whole(headers__timelimit="a", headers__id="x\nforged", body="c2VjcmV0"))
    digest = hashlib.sha256(message.encode()).hexdigest()
    time.sleep(1.1)  # the log names ten refusals a second, and the tests before this one may have used them up
    push(fleet, message)
    nothing_is_held(fleet)
    with Redis.from_url(fleet.broker_url) as redis:
        (found,) = until(lambda: [one for one in refused_messages(redis) if one.sha256 == digest])
    assert (found.queue, found.task, found.bytes) == ("argosy.scripted", "argosy.envelope", len(message))
    assert "timelimit" in found.cause
    log_file = fleet.home / "logs" / "worker-cpu.log"
    until(lambda: digest in log_file.read_text())
    log = log_file.read_text()
    assert log.count(digest) == 1
    assert "c2VjcmV0" not in log
    assert "\nforged" not in log
    listed = CliRunner().invoke(main, ["dead"])
    assert digest in listed.stdout
    assert any(finding.about == "messages" and "refused" in finding.found for finding in doctor.examine(None))


def test_a_compressed_message_is_refused_unopened(fleet, still_serves):
    """64 kB of it would be 64 MB, and kombu would unpack it before anybody may say no."""
    body = base64.b64encode(zlib.compress(bytes(64 * 2**20))).decode()
    message = json.dumps(whole(headers__compression="zlib", body=body))
    push(fleet, message)
    nothing_is_held(fleet)
    with Redis.from_url(fleet.broker_url) as redis:
        digest = hashlib.sha256(message.encode()).hexdigest()
        (found,) = until(lambda: [one for one in refused_messages(redis) if one.sha256 == digest])
    assert "compressed" in found.cause


def test_what_an_older_worker_left_does_not_stall(fleet, still_serves):
    """Its notes of messages that it never acknowledged, some of which are none, come back once it is gone."""
    notes = [json.dumps([whole(**changes), "", "argosy.scripted"]) for changes in HOSTILE]
    known = whole(properties=None)
    notes += [
        json.dumps([known, "", "argosy.scripted"]),
        "",
        "null",
        "[1]",
        DEEP,
        '[{"__type__": "x", "__value__": 1}, "", ""]',
        "[{}, {}, []]",
        "[[], null, 5]",
    ]
    with Redis.from_url(fleet.broker_url) as redis:
        redis.hset("unacked", mapping={f"old-{n}": note for n, note in enumerate(notes)})
        redis.zadd("unacked_index", {f"old-{n}": 1.0 for n in range(len(notes))})
        until(lambda: not redis.zcard("unacked_index"))
        [found] = until(lambda: [one for one in refused_messages(redis) if one.id == known["headers"]["id"]])
    assert (found.task, found.queue) == ("argosy.envelope", "argosy.scripted")
    nothing_is_held(fleet)


def test_a_number_that_no_database_holds_costs_only_its_item(fleet, still_serves):
    numbers = [0, 2**63, 1, -(2**64), 2]
    items = [{"seq": seq, "input": f"item {seq}", "tasks": ["echo"]} for seq in numbers]
    rows = results_of(fleet, envelope(items=items))
    assert {seq: row.state.value for seq, row in rows.items()} == {
        0: "succeeded", 1: "succeeded", 2: "succeeded", 5: "failed", 3: "failed",
    }  # fmt: skip


def nested(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


ODD_ITEMS = [
    {"input": {"type": "\ud800"}},
    {"input": {"type": "row", "values": {"\ud800": 1}}},
    {"input": "\ud800"},
    {"input": nested(900)},
    {"tasks": ["\ud800"]},
    {"tasks": ["\0"]},
    {"tasks": ["x" * 100_000]},
    {"tasks": [f"t{n}" for n in range(200)]},
    {"tasks": []},
    {"key": "\ud800"},
    {"key": "\0"},
    {"params": {"echo": {"\ud800": "\ud800"}}},
    {"params": {"\ud800": {}}},
    {"params": {"echo": {"x": nested(900)}}},
    {"\ud800": 1},
    {"seq": "\ud800"},
    {"seq": 1e300},
]


@pytest.mark.parametrize("odd", ODD_ITEMS, ids=range(len(ODD_ITEMS)))
def test_an_odd_item_costs_only_itself(fleet, still_serves, odd):
    """Whatever it holds that no row can hold, or no decoder reads: its neighbours have their results."""
    items = [{"seq": seq, "input": f"item {seq}", "tasks": ["echo"]} for seq in range(3)]
    items[1] |= odd
    rows = results_of(fleet, envelope(items=items))
    assert (rows[0].state, rows[2].state) == ("succeeded", "succeeded")


@pytest.mark.parametrize("changes", [{"id": "\ud800"}, {"job": "x\ud800"}, {"tenant": "\0"}, {"job": "x" * 300}])
def test_an_envelope_that_no_database_can_name_is_refused(fleet, still_serves, changes):
    message = whole(body=base64.b64encode(celery_body(envelope(durable=False, **changes))).decode())
    push(fleet, json.dumps(message))
    nothing_is_held(fleet)
    with Redis.from_url(fleet.broker_url) as redis:
        [found] = until(lambda: [one for one in refused_messages(redis) if one.id == message["headers"]["id"]])
    assert f"envelope: `{next(iter(changes))}` has over" in found.cause


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "zlib", "base64"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
PLACES = st.sampled_from(
    ["body", "content-type", "content-encoding", "headers", "properties"]
    + [
        f"headers__{name}"
        for name in (
            "task", "id", "root_id", "parent_id", "group", "group_index", "eta", "expires", "retries", "timelimit", "shadow",
            "argsrepr", "kwargsrepr", "origin", "ignore_result", "replaced_task_nesting", "stamped_headers", "stamps",
            "compression", "callbacks", "errbacks", "chain", "chord", "argosy_durable", "redelivered", "hostname", "is_eager",
        )
    ]
    + [
        f"properties__{name}"
        for name in ("correlation_id", "reply_to", "delivery_info", "delivery_tag", "body_encoding", "priority", "delivery_mode")
    ]
)  # fmt: skip
BODIES = st.builds(
    lambda embedded: base64.b64encode(json.dumps([["x"], {}, embedded]).encode()).decode(),
    st.dictionaries(st.sampled_from(["callbacks", "errbacks", "chain", "chord", "id", "delivery_info"]), JSON_VALUES)
    | JSON_VALUES,
)


@pytest.fixture
def patient(fleet):
    """No message of these tests waits for its time."""
    with Redis.from_url(fleet.broker_url) as redis:
        yield
        redis.delete(REFUSED)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.lists(
        st.dictionaries(PLACES, JSON_VALUES, max_size=2) | st.builds(lambda body: {"body": body}, BODIES),
        min_size=50,
        max_size=50,
    )
)
def test_whatever_a_message_says_nothing_is_held(fleet, patient, client, changes):
    """2,000 messages: every header, property and body by every JSON type."""
    messages = []
    for change in changes:
        ordered = dict(sorted(change.items(), key=lambda pair: pair[0].count("__"), reverse=True))
        messages.append(json.dumps(whole(**ordered)))
    push(fleet, *messages)
    assert client.submit("echo", "behind", priority="interactive").result(timeout_s=30)["crc"] == zlib.crc32(b"behind")
    nothing_is_held(fleet)
