"""Machines whose clocks are wrong, on a real broker and both databases: the store's clock judges all that they share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from sqlalchemy import select

from producers.wire.publisher import Publisher
from producers.wire.queues import redis_key
from results_store.records import Claim, ResultState
from results_store.sql.schema import envelopes
from results_store.store import Store
from tests.integration.rows import new_envelope, new_job, result
from tests.integration.shifted_clock import ShiftedClock
from workers.node.reconciler import Reconciler

WRONG = pytest.mark.parametrize(
    "ahead_s", [3600.0, *(pytest.param(ahead_s, marks=pytest.mark.long) for ahead_s in (60.0, -600.0, -3600.0))]
)

SUBMIT = """
import sys
from producers import Client
with Client(sys.argv[1], sys.argv[2]) as client:
    client.submit_many("topic", [f"text {n}" for n in range(300)], priority="bulk", deadline_s=60)
    client.submit_many("topic", ["without"], priority="bulk")
"""

RECONCILE = """
import sys
from producers.wire.publisher import Publisher
from results_store.store import Store
from workers.node.reconciler import Reconciler
publisher = Publisher(sys.argv[1])
with Store(sys.argv[2]) as store:
    reconciler = Reconciler(store, publisher, ["text"], overdue_s=0.001)
    print([reconciler.run() for _ in range(5)])
publisher.close()
"""

WORK = """
import json, sys
from results_store.store import Store
from results_store.writer import Writer
from workers.node.held_envelopes import HeldEnvelopes
with Store(sys.argv[1]) as store, Writer(store, worker="w1", lease_s=60) as writer:
    claimed = writer.claim("e0")
    held = HeldEnvelopes(store, worker="w1", lease_s=60)
    with held.taking("e0", "job"):
        held.renew_leases()
        print(json.dumps([claimed.verdict, claimed.now, claimed.deadline_at]))
"""


@pytest.fixture
def clock(tmp_path: Path, ahead_s: float) -> ShiftedClock:
    folder = tmp_path / "clock"
    folder.mkdir()
    return ShiftedClock(folder, ahead_s)


@pytest.fixture
def publisher(broker_url: str) -> Iterator[Publisher]:
    publisher = Publisher(broker_url)
    yield publisher
    publisher.close()


def rows(store: Store) -> list[dict[str, float]]:
    with store._database.read() as connection:
        return [dict(row) for row in connection.execute(select(envelopes)).mappings()]


def messages(broker_url: str) -> int:
    with Redis.from_url(broker_url) as redis:
        return sum(redis.llen(redis_key("text", priority, 0)) for priority in (0, 3, 9))


@WRONG
def test_a_client_whose_clock_is_wrong_is_served_like_any_other(
    clock: ShiftedClock, broker_url: str, store_url: str, store: Store, publisher: Publisher
) -> None:
    """Its deadlines count from the acceptance, and no reconciler sends its envelopes again (F3, F20)."""
    began_at = store.now()
    clock.run(SUBMIT, broker_url, store_url)
    ended_at = store.now()

    found = rows(store)
    assert len(found) == 6
    assert all(began_at <= row[name] <= ended_at for row in found for name in ("accepted_at", "published_at"))
    assert [began_at < row["deadline_at"] <= ended_at + 60 for row in found if row["deadline_at"]] == [True] * 5
    reconciler = Reconciler(store, publisher, ["text"], overdue_s=0.001)
    assert [reconciler.run() for _ in range(5)] == [0] * 5
    assert messages(broker_url) == 6


@WRONG
def test_a_reconciler_whose_clock_is_wrong_sends_only_what_is_lost(
    clock: ShiftedClock, broker_url: str, store_url: str, store: Store, tmp_path: Path
) -> None:
    """What waits in Redis is left there; what Redis lost is sent once, and not again by the next worker."""
    folder = tmp_path / "right"
    folder.mkdir()
    ShiftedClock(folder, 0.0).run(SUBMIT, broker_url, store_url)
    assert json.loads(clock.run(RECONCILE, broker_url, store_url)) == [0] * 5
    assert messages(broker_url) == 6

    with Redis.from_url(broker_url) as redis:
        redis.flushall()
    assert json.loads(clock.run(RECONCILE, broker_url, store_url)) == [6, 0, 0, 0, 0]
    assert messages(broker_url) == 6
    assert json.loads(clock.run(RECONCILE, broker_url, store_url)) == [0] * 5


@WRONG
def test_a_worker_whose_clock_is_wrong_holds_nothing_for_longer_than_its_lease(
    clock: ShiftedClock, store_url: str, store: Store
) -> None:
    """It claims, renews and dies: its leases end by the store's clock (F8)."""
    store.add_envelopes([new_envelope("e0", created_at=None, deadline_s=100.0)], jobs=[new_job()])
    began_at = store.now()
    verdict, now, deadline_at = json.loads(clock.run(WORK, store_url))
    ended_at = store.now()

    assert verdict == Claim.WORK
    assert began_at <= now <= ended_at < deadline_at <= began_at + 100
    [row] = rows(store)
    assert began_at + 60 <= row["leased_until"] <= ended_at + 60
    assert store.claim(["e0"], worker="w2", lease_s=60)["e0"].verdict is Claim.HELD
    [overdue] = store.take_overdue(now=row["leased_until"] + 0.001, overdue_s=1000)
    assert overdue.id == "e0"


@WRONG
def test_a_replay_is_of_all_that_failed_before_it(
    clock: ShiftedClock, store_url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the operator's clock says."""
    store.add_envelopes([new_envelope("e0")], jobs=[new_job()])
    store.commit([result(0, state=ResultState.FAILED, output=None, error={"kind": "X"})], done=["e0"])
    monkeypatch.setenv("ARGOSY_STORE_URL", store_url)
    said = clock.run("from producers.commands.main import main; main(['replay', '--all'])")
    assert said == "1 failed results of 1 envelopes queued again\n"
