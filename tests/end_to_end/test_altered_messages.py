"""Messages that were altered in Redis: every accepted item gets its own result, in its own place, and no other."""

from __future__ import annotations

import base64
import json
import random
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from producers import Client
from producers.wire.live_nodes import NODES, node_key
from producers.wire.messages import REFERENCE, VERSION, Priority
from producers.wire.queues import redis_key
from results_store.records import NewEnvelope, NewJob
from results_store.store import Store
from tests.end_to_end.conftest import SCRIPTED
from tests.end_to_end.processes import fleet_in, until
from workers.fleet.local import LocalFleet

TEXTS = [f"text {number}" for number in range(1280)]
QUEUE = redis_key("scripted", Priority.STANDARD)

#: A worker that takes a message at a time, so that the others stay in Redis. It needs no more than three attempts.
ONE_AT_A_TIME = SCRIPTED.replace("[worker]", "[worker]\nconcurrency = 1\nmax_attempts = 3")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    with fleet_in(tmp_path_factory.mktemp("altered"), ONE_AT_A_TIME) as fleet:
        yield fleet


Alter = Callable[[random.Random, bytes], bytes]


def flip(chance: random.Random, data: bytes) -> bytes:
    bit = chance.randrange(8 * len(data))
    return bytes(byte ^ (1 << bit % 8) if place == bit // 8 else byte for place, byte in enumerate(data))


def in_body(chance: random.Random, data: bytes) -> bytes:
    """Flip a bit of what the message says of its envelope."""
    message = json.loads(data)
    message["body"] = base64.b64encode(flip(chance, base64.b64decode(message["body"]))).decode()
    return json.dumps(message).encode()


def in_items(change: Callable[[list[Any]], object]) -> Alter:
    """Change the items, or do nothing to a message without items."""

    def alter(_: random.Random, data: bytes) -> bytes:
        message = json.loads(data)
        body = json.loads(base64.b64decode(message["body"]))
        change(body[0][0].get("items", []))
        message["body"] = base64.b64encode(json.dumps(body).encode()).decode()
        return json.dumps(message).encode()

    return alter


ALTERED: dict[str, Alter] = {
    "a bit anywhere": flip,
    "a bit of the body": in_body,
    "an item is missing": in_items(lambda items: items and items.pop()),
    "an item is elsewhere": in_items(lambda items: items and items[0].update(seq=9_999_999)),
    "two items in one place": in_items(lambda items: items and items[0].update(seq=items[1]["seq"])),
    "two copies": lambda _, data: data,
}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("form", [VERSION, REFERENCE])
@pytest.mark.parametrize("altered", ALTERED)
def test_altered_messages_lose_and_change_nothing(
    fleet: LocalFleet, client: Client, tmp_path: Path, altered: str, form: int
) -> None:
    """Each of twenty waiting messages is altered, in the form of today and in that of an older producer."""
    chance = random.Random(f"{altered} {form}")
    with Redis.from_url(fleet.broker_url) as redis, Store(fleet.store_url) as store:
        if form == VERSION:  # an older node, which takes nothing: producers send bodies
            redis.sadd(NODES, "older")
            redis.set(node_key("older"), '{"name": "older", "device": "cpu", "models": {}}')
        try:
            hold = tmp_path / "hold"
            first = client.submit("echo", f"hold {hold}")
            until(hold.exists)
            with Client(fleet.broker_url, fleet.store_url) as producer:
                job = producer.submit_many("echo", TEXTS, priority="standard")
                found: Any = redis.lrange(QUEUE, 0, -1)
                said = {one: json.loads(base64.b64decode(json.loads(one)["body"]))[0][0] for one in found}
                waiting = [one for one in found if said[one]["job"] == job.id]  # not a copy of an earlier test's
                assert len(waiting) == len(TEXTS) / 64
                assert {said[one]["version"] for one in waiting} == {form}
                for place, data in enumerate(found):
                    if data in waiting:
                        redis.lset(QUEUE, place, ALTERED[altered](chance, data))
                if altered == "two copies":
                    redis.lpush(QUEUE, *waiting)
                hold.unlink()
                status = job.wait(timeout_s=120)
                first.result(timeout_s=60)
                assert (status.total, status.succeeded) == (len(TEXTS), len(TEXTS))
                assert {row.seq: row.output["crc"] for row in job.results()} == {
                    seq: zlib.crc32(text.encode()) for seq, text in enumerate(TEXTS)
                }
                until(lambda: not store.depth())
        finally:
            redis.srem(NODES, "older")
            redis.delete(node_key("older"))


@pytest.mark.timeout(120)
def test_an_envelope_of_a_later_version_is_given_up_and_said_once(fleet: LocalFleet) -> None:
    """A newer producer stored it: it goes round no more than any other that fails, and without a traceback a try."""
    log = fleet.home / "logs" / "worker-cpu.log"
    before = len(log.read_text())
    envelope = {
        "version": 7,
        "id": "later",
        "job": "of-later",
        "model": "scripted",
        "priority": 9,
        "queued_at": 1.0,
        "items": [{"seq": n, "input": {"a": "form of later"}, "tasks": ["echo"], "key": f"k{n}"} for n in range(3)],
        "by": "a later version",
    }
    row = NewEnvelope(
        id="later",
        job="of-later",
        model="scripted",
        priority=9,
        items=3,
        results=3,
        payload=json.dumps(envelope).encode(),
        content_type="application/json",
        created_at=1.0,
    )
    with Store(fleet.store_url) as store:
        store.add_envelopes([row], jobs=[NewJob(id="of-later", priority=9, created_at=1.0)])
        until(lambda: store.job("of-later").finished)
        [letter] = store.dead_letters.newest(job="of-later")
    assert letter.attempts == 3
    assert letter.error is not None
    assert letter.error["message"].startswith("envelope version 7 is not supported by this worker")
    assert [(row.seq, row.key, row.error["kind"]) for row in letter.failures if row.error] == [
        (n, f"k{n}", "TooManyAttempts") for n in range(3)
    ]
    said = log.read_text()[before:]
    assert said.count("an envelope cannot be read: envelope version 7 is not supported") == 1
    assert "Traceback" not in said
