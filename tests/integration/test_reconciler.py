"""The reconciler on a real broker and both databases: what Redis has lost is published again, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from redis import Redis

from producers.wire.messages import REFERENCE, Envelope, Item, Priority, encode, new_id
from producers.wire.publisher import Publisher, message
from producers.wire.queues import redis_key
from results_store.records import NewEnvelope, NewJob
from results_store.store import Store
from tests.integration.stand_in import StandIn
from workers.node import presence
from workers.node.presence import ModelState, NodeState
from workers.node.reconciler import LIMIT, Reconciler

OVERDUE_S = 30.0


@pytest.fixture
def publisher(broker_url: str) -> Iterator[Publisher]:
    publisher = Publisher(broker_url)
    yield publisher
    publisher.close()


@pytest.fixture
def reconciler(store: Store, publisher: Publisher) -> Reconciler:
    """One that looks at Redis in its first run; the next look is due in `OVERDUE_S` / 2."""
    return Reconciler(store, publisher, ["text"], overdue_s=OVERDUE_S)


def accept(
    store: Store,
    count: int,
    *,
    published_at: float,
    priority: Priority = Priority.BULK,
    job: str = "job",
    model: str = "text",
) -> list[NewEnvelope]:
    """Put envelopes into the outbox and mark them as published then; whether Redis has them is another matter."""
    accepted = []
    for _ in range(count):
        item = Item(seq=0, input="a text", tasks=("sentiment",))
        made = Envelope(
            version=1,
            id=new_id(),
            job=job,
            model=model,
            priority=priority,
            queued_at=published_at,
            items=(item,),
        )
        payload, content_type = encode(made)
        accepted.append(
            NewEnvelope(
                id=made.id,
                job=job,
                model=model,
                priority=priority,
                items=1,
                results=1,
                payload=payload,
                content_type=content_type,
                created_at=published_at,
            )
        )
    new = NewJob(id=job, priority=priority, created_at=published_at)
    store.create_job(new)
    store.add_envelopes(accepted)
    store.mark_published([envelope.id for envelope in accepted], published_at)
    return accepted


def waiting(broker_url: str, store: Store) -> list[str]:
    return [envelope.id for envelope in StandIn(broker_url, store).waiting()]


def test_what_is_waiting_in_redis_is_left_there(
    store: Store, publisher: Publisher, reconciler: Reconciler, broker_url: str
) -> None:
    """A long queue is no loss: its oldest message was pushed before all that are still to come."""
    envelopes = accept(store, 3, published_at=time.time())
    publisher.publish([message(envelope) for envelope in envelopes])
    assert reconciler.run() == 0
    assert len(waiting(broker_url, store)) == 3


def test_an_empty_redis_gets_back_all_it_lost(store: Store, reconciler: Reconciler, broker_url: str) -> None:
    """In one run, however many: what the first portion puts back must not hide the rest."""
    lost = accept(store, LIMIT + 10, published_at=time.time() - OVERDUE_S - 1)
    assert reconciler.run() == len(lost)
    assert sorted(waiting(broker_url, store)) == sorted(envelope.id for envelope in lost)


def test_a_lost_envelope_is_found_though_others_keep_coming(
    store: Store, publisher: Publisher, reconciler: Reconciler, broker_url: str
) -> None:
    """Under steady load a queue is never empty; what should have come before its oldest message is lost."""
    (lost,) = accept(store, 1, published_at=time.time() - OVERDUE_S - 1)
    young = accept(store, 2, published_at=time.time(), job="other")
    publisher.publish([message(envelope) for envelope in young])
    assert reconciler.run() == 1
    assert sorted(waiting(broker_url, store)) == sorted(e.id for e in [lost, *young])


def test_a_lane_is_judged_by_its_own_messages(
    store: Store, publisher: Publisher, reconciler: Reconciler, broker_url: str
) -> None:
    """While interactive work keeps the workers busy, bulk may wait for long: it is not lost for that."""
    bulk = accept(store, 2, published_at=time.time() - OVERDUE_S - 1)
    publisher.publish([message(envelope, at=time.time() - OVERDUE_S - 1) for envelope in bulk])
    urgent = accept(store, 1, published_at=time.time(), priority=Priority.INTERACTIVE, job="other")
    publisher.publish([message(envelope) for envelope in urgent])
    assert reconciler.run() == 0
    assert len(waiting(broker_url, store)) == 3


@pytest.mark.parametrize(
    "junk", [b"junk", b"[]", b'{"properties": {"delivery_tag": "a9d0b1ff-7b0f-4b1e-bd0d-0c6de8a07a2e"}}']
)
def test_a_foreign_message_says_nothing_of_the_time(
    store: Store, reconciler: Reconciler, broker_url: str, junk: bytes
) -> None:
    """Whatever somebody put on a queue by hand: the reconciler fails at nothing, and waits until it is gone."""
    accept(store, 1, published_at=time.time() - OVERDUE_S - 1)
    with Redis.from_url(broker_url) as redis:
        redis.rpush(redis_key("text", Priority.BULK), junk)
    assert reconciler.run() == 0


@pytest.mark.parametrize("published_ago_s", [OVERDUE_S + 1, -3600])
def test_a_message_from_the_future_says_nothing_of_the_time(
    store: Store, publisher: Publisher, reconciler: Reconciler, broker_url: str, published_ago_s: float
) -> None:
    """A sender of an older version marks its messages by its own clock, or the store's was set back: no copies."""
    envelopes = accept(store, 5, published_at=time.time() - published_ago_s)
    publisher.publish([message(envelope, at=time.time() + 3600) for envelope in envelopes])
    assert reconciler.run() == 0
    assert len(waiting(broker_url, store)) == 5


def test_an_envelope_that_was_published_in_the_future_is_sent_once(
    store: Store, publisher: Publisher, broker_url: str
) -> None:
    """The store's clock was set back, or an older client's is ahead: what Redis has lost need not wait for that time."""
    lost = accept(store, LIMIT + 10, published_at=time.time() + 3600)
    assert Reconciler(store, publisher, ["text"], overdue_s=OVERDUE_S).run() == len(lost)
    assert Reconciler(store, publisher, ["text"], overdue_s=OVERDUE_S).run() == 0
    assert sorted(waiting(broker_url, store)) == sorted(envelope.id for envelope in lost)


def test_cancelled_work_of_a_model_that_nobody_serves_is_ended_here(
    store: Store, publisher: Publisher, reconciler: Reconciler, broker_url: str
) -> None:
    """Its job would be cancelling for ever. Other work of the model waits where it is."""
    presence.tell(
        publisher, NodeState(name="w1", device="cpu", models={"text": ModelState(revision="r")}, reads=REFERENCE)
    )
    then = time.time() - 100
    cancelled = accept(store, LIMIT + 3, published_at=then, model="vision", job="cancelled")
    kept = accept(store, 3, published_at=then, model="vision", job="kept")
    publisher.publish([message(envelope) for pair in zip(cancelled, kept, strict=False) for envelope in pair])
    publisher.publish([message(envelope) for envelope in cancelled[3:]])
    store.cancel_job("cancelled")
    assert reconciler.run() == len(cancelled)
    with Redis.from_url(broker_url) as redis:
        assert redis.llen(redis_key("vision", Priority.BULK)) == len(kept)
    assert sorted(waiting(broker_url, store)) == sorted(envelope.id for envelope in cancelled)
    assert reconciler.run() == 0
