"""A producer sends references only if every live node reads them, and it learns of the nodes on the way."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from redis import Redis

from producers import Client
from producers.wire import live_nodes
from producers.wire.messages import COLUMNAR, COLUMNS, REFERENCE, VERSION, Priority
from producers.wire.publisher import Publisher, message
from producers.wire.queues import redis_key
from results_store.store import Store
from tests.integration.rows import new_envelope, run_together
from workers.node import presence
from workers.node.presence import ModelState, NodeState


@pytest.fixture
def publisher(broker_url: str) -> Iterator[Publisher]:
    publisher = Publisher(broker_url)
    yield publisher
    publisher.close()


def announce(publisher: Publisher, name: str, reads: int) -> None:
    presence.tell(publisher, NodeState(name=name, device="cpu", models={}, reads=reads))


def announce_as_before(broker_url: str, name: str) -> None:
    """Announce a node as version 1a7a1cf did: nobody asked then what it reads."""
    with Redis.from_url(broker_url) as redis:
        redis.sadd("argosy.nodes", name)
        redis.set(f"argosy.node.{name}", json.dumps({"name": name, "device": "cpu", "models": {}}), ex=10)


def raw(data: bytes) -> Any:
    """Return the envelope or the reference in a message on Redis."""
    (found,), _, _ = json.loads(base64.b64decode(json.loads(data)["body"]))
    return found


def test_a_reference_names_its_envelope_and_no_more() -> None:
    """The inputs are in the store; what Flower shows is what it showed."""
    envelope = new_envelope("e0", payload=b'{"items": "a private letter"}', created_at=1.5)
    (key, whole), (same_key, short) = (message(envelope, about="1 item, topic", reference=r) for r in (False, True))
    assert key == same_key == redis_key("text", Priority.BULK)
    assert raw(short) == {"version": 2, "id": "e0", "job": "job", "model": "text", "priority": 9}
    before, after = json.loads(whole), json.loads(short)
    assert after["headers"] == before["headers"]
    for each in (before, after):
        del each["body"], each["properties"]["delivery_tag"]
    assert after == before


def test_an_unusual_content_type_is_no_matter_of_the_reference() -> None:
    """An envelope with bytes goes as MessagePack; what names it is JSON."""
    _, data = message(new_envelope("e0", content_type="application/x-msgpack", payload=b"\xff"), reference=True)
    assert json.loads(data)["content-type"] == "application/json"
    assert raw(data)["id"] == "e0"


def test_an_envelope_whose_inputs_are_gone_is_still_named() -> None:
    """A worker that takes it can tell the store; kept back, it would be unfinished for ever."""
    _, data = message(new_envelope("e0", payload=b"", content_type=""))
    assert raw(data)["version"] == REFERENCE


def test_references_are_for_fleets_that_read_them(publisher: Publisher, broker_url: str) -> None:
    """Nobody there: whoever starts is new enough. One old node among many: bodies, until it is gone."""
    publisher.look()
    assert publisher.by_reference
    announce(publisher, "new", REFERENCE)
    publisher.look()
    assert publisher.by_reference
    announce_as_before(broker_url, "old")
    publisher.look()
    assert not publisher.by_reference
    assert {node.name: node.reads for node in presence.nodes(publisher)} == {"new": REFERENCE, "old": VERSION}
    with Redis.from_url(broker_url) as redis:
        redis.delete("argosy.node.old")  # as it expires once the node is gone
    publisher.look()
    assert publisher.by_reference


def test_columns_are_as_long_as_the_slowest_node_likes(publisher: Publisher, broker_url: str) -> None:
    """While every node reads them; without any node, as before."""

    def tell(name: str, *, reads: int = COLUMNS, **texts: int) -> None:
        models = {model: ModelState(revision="1", in_columns=most) for model, most in texts.items()}
        presence.tell(publisher, NodeState(name=name, device="cpu", models=models, reads=reads))
        publisher.look()

    publisher.look()
    assert publisher.in_columns == {}
    tell("fast", text=1024, other=5)
    tell("slow", text=200)
    assert publisher.in_columns == {"text": 200, "other": 5}
    tell("older", reads=REFERENCE)
    assert publisher.in_columns == {}
    presence.leave(publisher, "older")
    presence.leave(publisher, "slow")
    publisher.look()
    presence.leave(publisher, "fast")
    publisher.look()
    assert publisher.in_columns == {"text": 1024, "other": 5}
    announce_as_before(broker_url, "old")
    publisher.look()
    assert publisher.in_columns == {}


def test_columns_are_always_named_by_a_reference() -> None:
    """Celery reads no such body."""
    _, data = message(new_envelope("e0", content_type=COLUMNAR, payload=b"\xff"), reference=False)
    assert raw(data)["version"] == REFERENCE


def test_nothing_is_known_before_the_first_look(publisher: Publisher) -> None:
    """Then every node can read what is sent."""
    assert not publisher.by_reference


def test_a_publish_looks_on_its_way(publisher: Publisher, broker_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new node is new to the first look, which knows only its name, and known to the second."""
    monkeypatch.setattr(live_nodes, "LOOK_EVERY_S", 0.0)
    sent = [message(new_envelope(f"e{n}")) for n in range(3)]
    publisher.publish(sent[:1])
    assert publisher.by_reference
    announce(publisher, "new", REFERENCE)
    publisher.publish(sent[:2])
    assert not publisher.by_reference
    publisher.publish(sent[2:])
    assert publisher.by_reference
    announce_as_before(broker_url, "old")
    publisher.publish(sent[:1])
    publisher.publish(sent[:1])
    assert not publisher.by_reference
    presence.leave(publisher, "old")
    publisher.publish(sent)
    assert publisher.by_reference
    with Redis.from_url(broker_url) as redis:
        assert redis.llen(redis_key("text", Priority.BULK)) == 9


def test_threads_that_publish_look_at_the_same_time(
    publisher: Publisher, broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client's durable and other items go by two threads; nodes come and go meanwhile."""
    monkeypatch.setattr(live_nodes, "LOOK_EVERY_S", 0.0)

    def work(number: int) -> None:
        for turn in range(50):
            if number < 2:
                announce(publisher, f"node {number} {turn % 5}", REFERENCE)
                presence.leave(publisher, f"node {number} {(turn + 2) % 5}")
            else:
                publisher.publish([message(new_envelope(f"{number} {turn}"))])

    run_together(work, 5)
    with Redis.from_url(broker_url) as redis:
        assert redis.llen(redis_key("text", Priority.BULK)) == 150


def test_a_lone_message_needs_no_more_than_one_command(publisher: Publisher, broker_url: str) -> None:
    """Between two looks, an interactive item costs what it cost."""
    publisher.look()
    with Redis.from_url(broker_url) as redis:
        before: Any = redis.info("stats")
        publisher.publish([message(new_envelope("e0"))])
        after: Any = redis.info("stats")
    assert after["total_commands_processed"] - before["total_commands_processed"] == 2  # with this INFO


def test_a_client_sends_what_the_fleet_reads(
    publisher: Publisher, store: Store, store_url: str, broker_url: str
) -> None:
    """Durable items by reference, unless an old node is there; others have no row, so they carry themselves."""
    forms: dict[str, list[int]] = {}
    for fleet in ("new", "old"):
        if fleet == "old":
            announce_as_before(broker_url, "old")
        with Client(broker_url, store_url) as client:
            client.submit("sentiment", "durable")
            client.submit("sentiment", "direct", durable=False)
            client.submit_many("sentiment", ["many", "more"])
        with Redis.from_url(broker_url) as redis:
            keys = [redis_key("text", priority) for priority in Priority]
            lists: list[Any] = [redis.lrange(key, 0, -1) for key in keys]
            redis.flushall()
        forms[fleet] = sorted(raw(data)["version"] for found in lists for data in found)
    assert forms == {"new": [VERSION, REFERENCE, REFERENCE], "old": [VERSION, VERSION, VERSION]}


def test_an_older_program_reads_a_new_announcement(publisher: Publisher) -> None:
    """It knows its own fields, and no others."""

    class Before(msgspec.Struct, frozen=True, kw_only=True):
        name: str
        device: str
        models: dict[str, Any]

    announce(publisher, "new", REFERENCE)
    said: Any = publisher.redis.get("argosy.node.new")
    assert msgspec.json.decode(said, type=Before).name == "new"


def test_a_model_that_no_worker_serves_is_said_once(
    publisher: Publisher, broker_url: str, store: Store, store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its items wait for ever otherwise, and nobody says why. Without any worker there is nothing to compare with."""
    with Client(broker_url, store_url) as client:
        client.submit("topic", "a")
        assert not caplog.records
        serving = {"vision": presence.ModelState(revision="r1")}
        presence.tell(publisher, NodeState(name="n1", device="cpu", models=serving, reads=REFERENCE))
        client._awaited._link.publisher.look()
        for _ in range(2):
            client.submit_many(["topic", "sentiment"], ["a"])
            client.submit("image-embedding", b"picture")
        (said,) = [record.getMessage() for record in caplog.records]
        assert said.startswith("no running worker serves the model 'text' of topic, sentiment: its items are accepted")
    with Redis.from_url(broker_url) as redis:
        assert live_nodes.served_models(redis) == {"vision": {"r1"}}
