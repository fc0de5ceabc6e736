"""Whoever has the broker's password writes odd things to it: nobody's item is lost, and no worker ends."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator
from itertools import islice

import pytest
from celery import Celery
from redis import Redis

from benchmarks.disasters.messages import HostileMessages
from producers import Client
from producers.wire.errors import BrokerUnavailable
from producers.wire.live_nodes import NODES, node_key
from producers.wire.messages import Priority
from producers.wire.queues import ASIDE, LOADS, REFUSED, done_channel, redis_key, refused_messages
from results_store.records import Tenant
from results_store.store import Store
from tests.end_to_end.conftest import SCRIPTED
from tests.end_to_end.processes import fleet_in, until
from workers.fleet import doctor
from workers.fleet.local import LocalFleet

DEEP = b"[" * 100_000 + b"]" * 100_000

#: Few slots, so that few lost ones stop a worker.
FEW_SLOTS = SCRIPTED.replace("[worker]", "[worker]\nconcurrency = 8")

LISTS = [redis_key("scripted", priority, lane) for priority in Priority for lane in (0, 1)]

BINDINGS = [
    f"_kombu.binding.{name}"
    for name in ("argosy.scripted", "argosy.scripted/1", "celery.pidbox", "celeryev", "reply.celery.pidbox")
]


@pytest.fixture(scope="module")
def fleet(postgresql_server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """Two workers on PostgreSQL, and two lanes."""
    import psycopg

    with psycopg.connect(postgresql_server.get_uri(), autocommit=True) as admin:
        admin.execute("CREATE DATABASE hostile")
    store = f'[store]\nurl = "{postgresql_server.get_uri("hostile")}"\n'
    with fleet_in(tmp_path_factory.mktemp("hostile"), FEW_SLOTS + store, workers_per_device=2) as fleet:
        with Client(fleet.broker_url, fleet.store_url) as client:
            client.submit("echo", "first", tenant="limited").result(timeout_s=60)
        with Store(fleet.store_url) as opened:
            opened.tenants.configure(Tenant(name="limited", lane=1, max_items_per_s=1000.0))
        yield fleet
    with psycopg.connect(postgresql_server.get_uri(), autocommit=True) as admin:
        admin.execute("DROP DATABASE hostile WITH (FORCE)")


@pytest.fixture
def redis(fleet: LocalFleet) -> Iterator[Redis]:
    with Redis.from_url(fleet.broker_url) as redis:
        yield redis


@pytest.fixture(autouse=True)
def _no_worker_ends(fleet: LocalFleet) -> Iterator[None]:
    before = [worker.process for worker in fleet.workers]
    yield
    assert [worker.process for worker in fleet.workers] == before
    assert [process.poll() for process in before if process] == [None, None]


def answered(client: Client, text: str, **options: str) -> None:
    """An item is submitted, again if Redis refuses it, and gets its result."""

    def submitted():
        try:
            return client.submit("echo", text, **options)
        except BrokerUnavailable:
            return None

    assert until(submitted).result(timeout_s=60)["crc"] == zlib.crc32(text.encode())


@pytest.mark.long
def test_hostile_messages_on_two_workers_keep_no_slot(fleet: LocalFleet, client: Client, redis: Redis) -> None:
    """A thousand from a seed, of all kinds, on every list; `python -m benchmarks.hostile` sends a hundred thousand."""
    messages = iter(HostileMessages(1, "scripted", lanes=2, known=(client.submit("echo", "x").job, "unknown")))
    for _ in range(4):
        for key, data in islice(messages, 250):
            redis.lpush(key, data)
        answered(client, "behind", priority="interactive")
        until(lambda: not redis.hlen("unacked") and not any(map(redis.llen, LISTS)))


def test_keys_of_wrong_types_are_put_aside(fleet: LocalFleet, client: Client, redis: Redis) -> None:
    """Every key that Argosy and kombu use, made by somebody else with a type that refuses their commands."""
    keys = {
        *LISTS, *BINDINGS, NODES, REFUSED, "argosy.ended", "argosy.probe", "argosy.rate.limited", "unacked_index",
        "unacked_mutex", *redis.keys("argosy.node.*"),
    }  # fmt: skip
    with redis.pipeline() as pipeline:
        pipeline.delete(*keys, "unacked", LOADS).set("unacked", "text").set(LOADS, "text")
        for key in keys:
            pipeline.hset(key, "a", 1)
        pipeline.execute()
    for priority in ("interactive", "standard", "bulk"):
        answered(client, f"beside wrong keys {priority}", priority=priority)
        answered(client, f"beside wrong keys, limited {priority}", priority=priority, tenant="limited")
    moved = {*LISTS, *BINDINGS, NODES, LOADS, REFUSED, "argosy.ended", "unacked", "unacked_index", "unacked_mutex"}
    until(lambda: all(redis.exists(ASIDE + key) for key in moved))
    assert moved <= {message.queue for message in until(lambda: refused_messages(redis))}
    assert all(redis.ttl(ASIDE + key) > 0 for key in moved)
    application = Celery("foreign", broker=fleet.broker_url, backend=f"argosy+{fleet.store_url}", set_as_current=False)
    envelope = {"model": "scripted", "items": [{"seq": 0, "input": "later", "tasks": ["echo"]}]}
    soon = application.send_task("argosy.envelope", [envelope], queue="argosy.scripted", countdown=1)
    assert soon.get(timeout=60)["results"][0]["output"]["crc"] == zlib.crc32(b"later")
    application.close()


def test_a_worker_starts_over_keys_of_wrong_types(fleet: LocalFleet, client: Client, redis: Redis) -> None:
    """A worker that is told to go ends, and the next one finds what somebody wrote meanwhile."""
    with redis.pipeline() as pipeline:
        for key in (*LISTS, NODES, "unacked", "unacked_index", "unacked_mutex", "_kombu.binding.argosy.scripted"):
            pipeline.delete(key).set(key, "text")
        pipeline.execute()
    answered(client, "after", priority="bulk")


@pytest.mark.parametrize("value", ["", "text", "1e999", "-1", "nan", "99999999999999"])
def test_a_rate_that_somebody_wrote_refuses_nobody(client: Client, redis: Redis, value: str) -> None:
    redis.set("argosy.rate.limited", value)
    answered(client, "limited", tenant="limited")


def test_nodes_that_say_nonsense_are_older_nodes(fleet: LocalFleet, client: Client, redis: Redis) -> None:
    """Producers send bodies while they are there; what shows nodes leaves them out."""
    said = {"deep": DEEP, "text": b"\xff", "list": b"[]", "number": b'{"reads": "x"}', "": b"{}"}
    try:
        redis.sadd(NODES, b"\xff\xfe", *said)
        for name, announcement in said.items():
            redis.set(node_key(name), announcement)
        redis.zadd("argosy.ended", {DEEP: 4e9, b"x": 4e9})
        redis.lpush(REFUSED, DEEP, b"x")
        with Client(fleet.broker_url, fleet.store_url) as fresh:
            answered(fresh, "beside nonsense")
        assert doctor.examine(None)
        assert refused_messages(redis) is not None
    finally:
        redis.srem(NODES, b"\xff\xfe", *said)
        redis.delete("argosy.ended", *map(node_key, said))


BROADCASTS = [
    b"[]", b"5", b"null", b"{}", b"\xff", DEEP, b'{"body": 5, "properties": {}}', b'{"properties": null}',
    b'{"body": "W10=", "content-type": "application/json", "headers": {}, "properties": {"delivery_tag": "x"}}',
]  # fmt: skip


def test_odd_broadcasts_end_no_worker(client: Client, redis: Redis) -> None:
    """On the channels of remote control and events, which kombu reads without a guard."""
    for channel in ("/0.celery.pidbox", "/0.celeryev", "/0.celeryev/worker.x", "/0.reply.celery.pidbox"):
        for broadcast in BROADCASTS:
            redis.publish(channel, broadcast)
    answered(client, "after broadcasts")


def test_odd_notices_cost_no_result(client: Client, redis: Redis, tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    """On the channel of the client's own job, while it waits there."""
    hold = tmp_path / "hold"
    waiting = client.submit("echo", f"hold {hold}")
    until(hold.exists)
    for notice in (b"", b"\xff", b" ", b"x [", b"x [{}]", b"x " + DEEP, DEEP):
        assert redis.publish(done_channel(waiting.job), notice)
    hold.unlink()
    assert waiting.result(timeout_s=60)["crc"] == zlib.crc32(f"hold {hold}".encode())
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []
