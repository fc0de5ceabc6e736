"""Waiting for a job while its database is away: PostgreSQL refuses connections for a moment, as when it is
restarted.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from producers.client import async_handles, notices
from producers.client.async_client import AsyncClient
from producers.client.async_handles import Outage
from producers.client.client import Client
from results_store.errors import StoreUnavailable
from results_store.records import JobStatus
from results_store.store import Store
from tests.integration.stand_in import StandIn

Waiting = Callable[[str, str, str, threading.Event], JobStatus]


def by_threads(broker_url: str, store_url: str, job: str, begun: threading.Event) -> JobStatus:
    with Client(broker_url, store_url) as client:
        return client.job(job).wait(on_progress=lambda _: begun.set())


def by_asyncio(broker_url: str, store_url: str, job: str, begun: threading.Event) -> JobStatus:
    async def scenario() -> JobStatus:
        async with AsyncClient(broker_url, store_url) as client:
            return await (await client.job(job)).wait(on_progress=lambda _: begun.set())

    return asyncio.run(scenario())


@pytest.fixture(params=[by_threads, by_asyncio])
def waits(request: pytest.FixtureRequest) -> Waiting:
    waiting: Waiting = request.param
    return waiting


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once a waiter has met the outage. It looks often meanwhile."""
    met = threading.Event()
    is_over = Outage.is_over

    def noted(outage: Outage) -> bool:
        met.set()
        return is_over(outage)

    monkeypatch.setattr(Outage, "is_over", noted)
    monkeypatch.setattr(notices, "FALLBACK_S", 0.05)
    return met


@pytest.fixture
def job(broker_url: str, store_url: str, store: Store) -> str:
    """A job of one item that nobody has computed."""
    with Client(broker_url, store_url) as client:
        return client.submit_many("topic", ["a"]).id


@contextmanager
def away(server: Any, url: str) -> Iterator[None]:
    """The database ends its connections and takes no new ones."""
    name = conninfo_to_dict(url)["dbname"]
    with psycopg.connect(server.get_uri(), autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        try:
            yield
        finally:
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
def test_a_wait_outlasts_a_restart_of_the_database(
    waits: Waiting,
    refused: threading.Event,
    postgresql_server: Any,
    broker_url: str,
    store: Store,
    store_url: str,
    job: str,
) -> None:
    """The work is done afterwards, and the waiter hears of it."""
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(waits, broker_url, store_url, job, begun := threading.Event())
        assert begun.wait(60)
        with away(postgresql_server, store_url):
            assert refused.wait(60)
            assert not waiting.done()
        StandIn(broker_url, store).work(1)
        assert waiting.result(timeout=60).succeeded == 1


@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
def test_an_outage_without_end_ends_the_wait(
    waits: Waiting,
    refused: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    postgresql_server: Any,
    broker_url: str,
    store_url: str,
    job: str,
) -> None:
    """What is raised says so; it is not the waiter's own timeout."""
    monkeypatch.setattr(async_handles, "OUTAGE_S", 0.2)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(waits, broker_url, store_url, job, begun := threading.Event())
        assert begun.wait(60)
        with away(postgresql_server, store_url), pytest.raises(StoreUnavailable):
            waiting.result(timeout=60)
        assert refused.is_set()
