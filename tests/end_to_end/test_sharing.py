"""Two nodes share a job: a node that joins gets its part at once, and a node whose device stalls delays nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from producers import Client, Job
from results_store.sql.schema import batches, envelopes, results
from results_store.store import Store
from tests.end_to_end.conftest import SCRIPTED
from tests.end_to_end.processes import fleet_in, until
from workers.fleet.local import LocalFleet

pytestmark = pytest.mark.faults

TIMEOUT_S = 120


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    with fleet_in(tmp_path_factory.mktemp("sharing"), SCRIPTED, workers_per_device=2) as fleet:
        yield fleet


@pytest.fixture
def store(fleet: LocalFleet) -> Iterator[Store]:
    with Store(fleet.store_url) as store:
        yield store


def rows_by_node(store: Store, job: str = "") -> Counter[str]:
    """The stored results of each node."""
    wanted = select(batches.c.worker, func.count()).join(results, results.c.batch == batches.c.id)
    if job:
        wanted = wanted.where(results.c.job == job)
    with store._database.read() as connection:
        return Counter(dict(connection.execute(wanted.group_by(batches.c.worker)).all()))  # type: ignore[arg-type]


def assert_each_once(store: Store, job: Job, count: int) -> None:
    """Each item has its result, and no attempt counts but the last."""
    assert job.progress().succeeded == count == sum(rows_by_node(store, job.id).values())
    with store._database.read() as connection:
        tried = connection.execute(select(envelopes.c.attempts, envelopes.c.deaths).where(envelopes.c.job == job.id))
        assert {tuple(row) for row in tried} == {(1, 0)}


def logs(fleet: LocalFleet) -> str:
    return "".join(service.log.read_text(encoding="utf-8") for service in fleet.workers)


def test_a_node_that_joins_gets_work_at_once(fleet: LocalFleet, client: Client, store: Store) -> None:
    """The other one has taken all of it, and the queue is empty."""
    joins = fleet.workers[1]
    joins.stop()
    before = rows_by_node(store)
    job = client.submit_many("echo", [f"sleep 0.02 {number}" for number in range(640)])
    until(lambda: rows_by_node(store) != before)
    joins.start()
    assert job.wait(timeout_s=TIMEOUT_S).succeeded == 640
    assert len(rows_by_node(store, job.id)) == 2, logs(fleet)
    assert_each_once(store, job, 640)


def test_a_node_whose_device_stalls_delays_no_job(
    fleet: LocalFleet, client: Client, store: Store, tmp_path: Path
) -> None:
    """It holds two envelopes or more when its device stalls, and another node computes them meanwhile."""
    warm = 0
    while len(rows_by_node(store)) < 2 or warm < 3:  # both know what an envelope costs
        client.submit_many("echo", [f"warm {warm} {number}" for number in range(640)]).wait(timeout_s=TIMEOUT_S)
        warm += 1
    stalls = tmp_path / "stalls"
    held = client.submit("echo", f"hold {stalls}", priority="bulk")
    until(stalls.exists)
    job = client.submit_many("echo", [f"text {number}" for number in range(640)])
    urgent = [client.submit("echo", f"urgent {number}", priority="interactive") for number in range(10)]
    assert job.wait(timeout_s=TIMEOUT_S).succeeded == 640
    for each in urgent:
        each.result(timeout_s=TIMEOUT_S)
    assert stalls.exists()
    assert len(rows_by_node(store, job.id)) == 1
    stalls.unlink()
    held.result(timeout_s=TIMEOUT_S)
    assert_each_once(store, job, 640)
