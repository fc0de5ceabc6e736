"""The connections to PostgreSQL: which are asked whether they live, how many are kept, and how they are replaced."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import psycopg
import pytest
from sqlalchemy import event, text

from results_store.sql.database import Database, Weight
from results_store.sql.engines import postgresql

OTHERS = "FROM pg_stat_activity WHERE application_name = 'argosy' AND datname = current_database()"


@pytest.fixture
def database(postgresql_url: str) -> Iterator[Database]:
    database = Database(postgresql_url, timeout_s=30)
    database.open()
    yield database
    database.close()


@pytest.fixture
def asked(database: Database, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The connections that were asked whether they live."""
    found: list[object] = []
    dialect = database._opened().dialect
    ask = dialect.do_ping

    def do_ping(connection: object) -> bool:
        found.append(connection)
        return ask(connection)  # type: ignore[arg-type]

    monkeypatch.setattr(dialect, "do_ping", do_ping)
    return found


def write(database: Database, weight: Weight, *, tried_again: bool = False) -> int:
    with database.write(weight, tried_again=tried_again) as connection:
        return connection.execute(text("SELECT pg_backend_pid()")).scalar_one()


def test_only_what_is_tried_again_trusts_a_connection_that_was_just_used(
    database: Database, asked: list[object]
) -> None:
    write(database, Weight.RESULTS, tried_again=True)
    write(database, Weight.NOTE, tried_again=True)
    assert not asked
    for number, weight in enumerate(Weight):
        write(database, weight)
        assert len(asked) == number + 1
    with database.read() as connection:
        connection.execute(text("SELECT 1"))
    assert len(asked) == len(Weight) + 1


@pytest.mark.parametrize("weight", Weight)
def test_a_connection_that_was_lost_meanwhile_is_replaced_without_a_word(
    database: Database, postgresql_url: str, monkeypatch: pytest.MonkeyPatch, weight: Weight
) -> None:
    before = write(database, weight)
    with psycopg.connect(postgresql_url) as admin:
        admin.execute(f"SELECT pg_terminate_backend(pid) {OTHERS}")
    monkeypatch.setattr(postgresql, "LIVELY_S", 0.0)
    assert write(database, weight) != before


def test_threads_that_store_at_once_keep_their_connections(database: Database, postgresql_url: str) -> None:
    """A connection costs the server a process: a worker with five busy threads opened six a second."""
    opened: list[object] = []
    event.listen(database._opened(), "connect", lambda connection, _record: opened.append(connection))
    threads = 8
    together = Barrier(threads)

    def store() -> None:
        with database.write(Weight.NOTE) as connection:
            connection.execute(text("SELECT 1"))
            together.wait(timeout=30)

    with ThreadPoolExecutor(threads) as pool:
        for _ in range(3):
            for done in [pool.submit(store) for _ in range(threads)]:
                done.result()
    assert len(opened) == threads
