"""The order of row locks on PostgreSQL, by which transactions never deadlock; on SQLite there is a single lock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest

from results_store.records import Tenant, Transaction
from results_store.store import Store
from tests.end_to_end.processes import until
from tests.integration.rows import result, submit

IDS = ("e1", "e0")  # in the order of the table, which is not the order of the ids

ACTIONS: dict[str, Callable[[Store], object]] = {
    "renew": lambda store: store.renew(IDS, worker="w1", lease_s=60),
    "release": lambda store: store.release(IDS, worker="w1"),
    "mark": lambda store: store.mark_published(IDS, 1.0),
    "claim": lambda store: store.claim(IDS, worker="w1", lease_s=60),
    "commit": lambda store: store.commit([result(n, envelope=id_) for n, id_ in enumerate(IDS)]),
    "finish": lambda store: store.transact(Transaction(dead=IDS)),
}


@pytest.fixture
def scanning(store: Store, store_url: str) -> Iterator[Store]:
    """The store, with statements that meet rows in the order of the table."""
    with psycopg.connect(store_url, autocommit=True) as admin:
        for plan in ("indexscan", "indexonlyscan", "bitmapscan"):
            admin.execute(f'ALTER DATABASE "{admin.info.dbname}" SET enable_{plan} = off'.encode())
    with Store(store_url) as own:
        yield own


def waiting(watch: psycopg.Connection) -> int:
    """The number of sessions that wait for a lock of another."""
    count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return int(watch.execute(count).fetchall()[0][0])


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
def test_envelopes_are_locked_in_the_order_of_their_ids(scanning: Store, store_url: str, action: str) -> None:
    """A transaction that waits for the first holds none of the later ones."""
    submit(scanning, ids=IDS)
    if action != "mark":
        for id_ in IDS:
            scanning.claim([id_], worker="w1", lease_s=60)
    with psycopg.connect(store_url) as other, psycopg.connect(store_url, autocommit=True) as watch:
        other.execute("SELECT 1 FROM envelopes WHERE id = 'e0' FOR UPDATE")
        thread = in_thread(lambda: ACTIONS[action](scanning))
        until(lambda: waiting(watch) or not thread.is_alive())
        assert thread.is_alive()
        assert watch.execute("SELECT 1 FROM envelopes WHERE id = 'e1' FOR UPDATE NOWAIT").fetchone()
        other.rollback()
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
def test_tenants_that_are_enrolled_at_once_get_lanes_of_their_own(store: Store, store_url: str) -> None:
    """And a tenant that is enrolled twice at once gets a single one."""
    enrolled: list[Tenant] = []
    with psycopg.connect(store_url) as other, psycopg.connect(store_url, autocommit=True) as watch:
        other.execute("SELECT 1 FROM tenants WHERE name = '' FOR UPDATE")
        threads = [in_thread(lambda name=name: enrolled.append(store.tenants.enrol(name))) for name in ("a", "b", "a")]  # type: ignore[misc]
        until(lambda: waiting(watch) == 3 or enrolled)
        assert not enrolled
        other.rollback()
    for thread in threads:
        thread.join(60)
    lanes = {tenant.name: tenant.lane for tenant in enrolled}
    assert len(enrolled) == 3
    assert len(set(lanes.values())) == 2
    assert [tenant.name for tenant in store.tenants.every() if tenant.name] == ["a", "b"]
