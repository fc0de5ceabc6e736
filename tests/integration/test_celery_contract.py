"""Our hand-built message against Celery itself: the same fields as its own, and a stock worker runs it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from redis import Redis

from producers.wire.messages import (
    VERSION,
    Envelope,
    InlineBytes,
    Input,
    Item,
    JsonInput,
    Priority,
    Reference,
    decode,
    encode,
    new_id,
)
from producers.wire.publisher import DURABLE, Publisher, message
from producers.wire.queues import PRIORITY_STEPS, TASK, queue_name, redis_key
from results_store.records import PendingEnvelope


def pending(value: Input, priority: Priority) -> tuple[Envelope, PendingEnvelope]:
    """Return an envelope and what the store keeps of it: what the reconciler has in hand."""
    envelope = Envelope(
        version=VERSION,
        id=new_id(),
        job=new_id(),
        model="text",
        priority=priority,
        queued_at=1.5,
        items=(Item(0, value, ("topic",)),),
    )
    payload, content_type = encode(envelope)
    kept = PendingEnvelope(
        id=envelope.id,
        job=envelope.job,
        model=envelope.model,
        priority=int(priority),
        payload=payload,
        content_type=content_type,
        created_at=1.5,
        accepted_at=1.5,
        attempts=0,
    )
    return envelope, kept


@pytest.fixture
def app(broker_url: str) -> Iterator[Celery]:
    """A stock Celery app that knows nothing of us but the address and the priorities."""
    app = Celery("stock", broker=broker_url, set_as_current=False)
    app.conf.update(
        accept_content=["json", "msgpack"],
        broker_transport_options={"priority_steps": PRIORITY_STEPS},
        task_default_queue=queue_name("text"),
        worker_prefetch_multiplier=1,
    )
    yield app
    app.close()


def pop(redis: Redis, key: str) -> dict[str, Any]:
    popped: Any = redis.rpop(key)
    read: dict[str, Any] = json.loads(popped)
    return read


def body(wire: dict[str, Any]) -> Any:
    return json.loads(base64.b64decode(wire["body"]))


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("priority", list(Priority))
def test_our_message_has_field_for_field_what_celery_sends(
    app: Celery, broker_url: str, priority: Priority, *, reference: bool
) -> None:
    """Whatever reads Celery's messages (workers, Flower, monitors) must find in ours what it expects, where it does."""
    envelope, kept = pending("a fine film", priority)
    key, data = message(kept, reference=reference)
    named = Reference(id=envelope.id, job=envelope.job, model="text", priority=int(priority))
    with Redis.from_url(broker_url) as redis:
        app.send_task(
            TASK,
            args=[msgspec.to_builtins(named if reference else envelope)],
            task_id=envelope.id,
            queue=queue_name("text"),
            priority=int(priority),
            ignore_result=True,
            argsrepr=json.loads(data)["headers"]["argsrepr"],
            kwargsrepr="{}",
        )
        theirs = pop(redis, redis_key("text", priority))
    ours = json.loads(data)
    assert ours["headers"].pop(DURABLE) is True, "for Argosy's workers; everybody else passes over it"
    assert key == redis_key("text", priority)
    assert body(ours) == body(theirs)
    for wire in (ours, theirs):
        assert wire.pop("body")
        assert wire["headers"].pop("origin")
        assert wire["properties"].pop("delivery_tag")
        wire["properties"].pop("reply_to")  # nobody awaits a reply through the broker
        for spilt in ("argsrepr", "kwargsrepr"):  # send_task puts its options there as well; nobody reads them
            wire["properties"].pop(spilt, None)
    assert ours == theirs


KOMBUS = JsonInput({"__type__": "decimal", "__value__": "1.50"})  # in JSON, a worker would get 1.5


@pytest.mark.parametrize("value", ["a fine film — çà et là", InlineBytes(bytes(range(256))), KOMBUS])
def test_a_stock_worker_runs_our_message(app: Celery, broker_url: str, value: Input) -> None:
    """Published before any worker was ever there, as JSON and as MessagePack, at each priority."""
    received: list[object] = []
    all_there = threading.Event()

    @app.task(name=TASK, shared=False)  # type: ignore[untyped-decorator]
    def run(raw: object) -> None:
        received.append(raw)
        if len(received) == len(sent):
            all_there.set()

    sent = [pending(value, priority) for priority in Priority]
    publisher = Publisher(broker_url)
    publisher.publish([message(kept) for _, kept in sent])
    with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=30):
        assert all_there.wait(30)
    publisher.close()
    assert [decode(raw) for raw in received] == [(envelope, []) for envelope, _ in sent]  # the urgent one first


def test_what_flower_shows_tells_the_work_and_not_the_inputs() -> None:
    """Arguments are shown to operators and kept by monitors; customers' texts don't belong there."""
    _, kept = pending("a private letter", Priority.BULK)
    _, data = message(kept, about="1 item, topic")
    headers = json.loads(data)["headers"]
    assert headers["argsrepr"] == repr((f"text: 1 item, topic, bulk, job {kept.job}",))
    assert b"a private letter" not in json.dumps(headers).encode()


def test_two_copies_of_one_envelope_are_acknowledged_apart() -> None:
    """The reconciler may publish an envelope that is still there; one shared delivery tag would acknowledge both."""
    _, kept = pending("x", Priority.BULK)
    tags = {json.loads(message(kept)[1])["properties"]["delivery_tag"] for _ in range(2)}
    assert len(tags) == 2
