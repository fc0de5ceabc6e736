"""Results that come with their notices: on a real broker, with nothing in the store that could have told them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from producers.client import notices
from producers.client.client import Client
from producers.client.handles import Handle
from producers.wire.errors import ResultTimeout
from producers.wire.publisher import Publisher
from producers.wire.queues import done_channel
from results_store.records import Result, ResultState
from results_store.sql.columns import pack_vector
from results_store.store import Store
from tests.end_to_end.processes import until
from tests.integration.stand_in import StandIn
from workers.node.done_notices import SMALL_BYTES, DoneNotices


@pytest.fixture
def store_url(sqlite_url: str) -> str:
    """Nothing here depends on the database: one is enough."""
    return sqlite_url


@pytest.fixture
def client(broker_url: str, store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(notices, "FALLBACK_S", 600.0)  # only a notice can tell
    with Client(broker_url, store_url) as client:
        yield client


@pytest.fixture
def told(broker_url: str) -> Iterator[DoneNotices]:
    publisher = Publisher(broker_url)
    yield DoneNotices(publisher)
    publisher.close()


def succeeded(handle: Handle, envelope: str) -> Result:
    return Result(job=handle.job, seq=handle.seq, task=handle.tasks[0], envelope=envelope, state=ResultState.SUCCEEDED)


def announce(told: DoneNotices, *results: Result) -> None:
    """Announce once somebody listens: the client's subscription comes a moment after its first submission."""
    channel = done_channel(results[0].job)
    until(lambda: told._publisher.redis.pubsub_numsub(channel)[0][1])
    told.announce([(results[0].job, results[0].envelope)], {results[0].envelope: results})


def test_a_small_result_needs_no_look_into_the_store(
    client: Client, told: DoneNotices, broker_url: str, store: Store
) -> None:
    """JSON and vectors alike."""
    stand_in = StandIn(broker_url, store)
    label = client.submit("topic", "a", durable=False)
    announce(told, replace(succeeded(label, stand_in.waiting()[0].id), output=[{"label": "ä", "score": 0.25}]))
    assert label.result(timeout_s=60) == [{"label": "ä", "score": 0.25}]
    vector = client.submit("embedding", "a", durable=False)
    announce(told, replace(succeeded(vector, stand_in.waiting()[-1].id), vector=pack_vector([0.5, -1.25])))
    assert vector.result(timeout_s=60) == [0.5, -1.25]


@pytest.mark.parametrize("output", ["x" * SMALL_BYTES, "a\0b"])
def test_what_is_large_or_stored_otherwise_is_looked_up(
    client: Client, told: DoneNotices, broker_url: str, store: Store, output: str
) -> None:
    """The notice only says when."""
    handle = client.submit("topic", "a", durable=False)
    (envelope,) = StandIn(broker_url, store).waiting()
    row = replace(succeeded(handle, envelope.id), output=output)
    store.commit([row], done=[envelope.id], unlisted=[envelope.id])
    announce(told, row)
    assert handle.result(timeout_s=60) == output.replace("\0", "\ufffd")


def test_of_what_is_durable_only_the_store_is_believed(
    client: Client, told: DoneNotices, broker_url: str, store: Store
) -> None:
    """Whoever can reach the broker could announce anything."""
    handle = client.submit("topic", "a")
    stand_in = StandIn(broker_url, store)
    announce(told, replace(succeeded(handle, stand_in.waiting()[0].id), output="forged"))
    with pytest.raises(ResultTimeout):
        handle.result(timeout_s=0.1)
    stand_in.work(1)
    assert handle.result(timeout_s=60) == [{"label": "topic of a", "score": 0.5}]


@pytest.mark.parametrize("tail", [b" no json", b' [{"seq": 1}]', b" \xff", b" "])
def test_a_notice_that_cannot_be_read_is_one_without_results(
    client: Client, told: DoneNotices, broker_url: str, store: Store, tail: bytes
) -> None:
    """It still says that there is something to look at."""
    handle = client.submit("topic", "a", durable=False)
    stand_in = StandIn(broker_url, store)
    (envelope,) = stand_in.waiting()
    stand_in.commit(envelope)
    publisher = Publisher(broker_url)
    publisher.redis.publish(f"argosy.done.{handle.job}", envelope.id.encode() + tail)
    publisher.close()
    assert handle.result(timeout_s=60) == [{"label": "topic of a", "score": 0.5}]
