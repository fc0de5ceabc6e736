"""Tenants in a real fleet: each comes up while the workers run, takes its turn, and loses nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from producers import Client
from producers.wire.messages import Priority
from producers.wire.queues import redis_key
from results_store.records import Tenant
from results_store.store import Store
from tests.end_to_end.processes import until
from workers.fleet.local import LocalFleet

WAIT_S = 60


@pytest.fixture
def client(shared_fleet: LocalFleet) -> Iterator[Client]:
    with Client(shared_fleet.broker_url, shared_fleet.store_url) as client:
        yield client


def test_new_tenants_are_served_by_workers_that_run_already(client: Client) -> None:
    """Nobody restarts a fleet for a customer: durable or not, one item or many, under a name never seen before."""
    handles = [
        client.submit("echo", "a text", tenant=f"customer-{number}", durable=durable)
        for number in range(3)
        for durable in (True, False)
    ]
    job = client.submit_many("echo", [f"text {number}" for number in range(100)], tenant="customer-3")
    for handle in handles:
        assert handle.result(timeout_s=WAIT_S)["task"] == "echo"
    status = job.wait(timeout_s=WAIT_S)
    assert (status.tenant, status.succeeded) == ("customer-3", 100)
    assert [mine.id for mine in client.jobs(tenant="customer-3")] == [job.id]


def test_a_lane_goes_on_after_the_broker_was_restarted(shared_fleet: LocalFleet, client: Client) -> None:
    """The consumer is made anew on a new connection: it must know the lanes that came up since the worker started."""
    client.submit("echo", "before", tenant="lasting").result(timeout_s=WAIT_S)
    with Redis.from_url(shared_fleet.broker_url) as redis:
        redis.client_kill_filter(_type="normal", skipme=True)
    handle = client.submit("echo", "after", tenant="lasting")
    assert handle.result(timeout_s=WAIT_S)["task"] == "echo"


def test_one_tenants_many_do_not_stand_in_front_of_anothers_few(shared_fleet: LocalFleet, client: Client) -> None:
    """What was submitted first, and is far more, is far from finished when the small one is."""
    client.submit("echo", "a lane of its own", tenant="small").result(timeout_s=WAIT_S)
    slow = (f"sleep 0.02 {number}" for number in range(3_000))
    large = client.submit_many("echo", slow, tenant="large")
    small = client.submit_many("echo", [f"quick {number}" for number in range(100)], tenant="small")
    assert small.wait(timeout_s=WAIT_S).succeeded == 100
    assert large.progress().done < 1_500
    large.cancel()
    assert large.wait(timeout_s=WAIT_S).finished


def test_weights_and_lanes_are_what_the_store_says(shared_fleet: LocalFleet) -> None:
    """A lane is for good; weights may change."""
    with Store(shared_fleet.store_url) as store:
        lane = store.tenants.enrol("weighty").lane
        assert store.tenants.configure(Tenant(name="weighty", lane=0, weight=2.5)) == Tenant(
            name="weighty", lane=lane, weight=2.5
        )
        assert store.tenants.enrol("weighty").lane == lane > 0
        lanes = [tenant.lane for tenant in store.tenants.every()]
    assert len(set(lanes)) == len(lanes)


def test_a_lane_that_was_lost_is_published_again_in_its_lane(
    shared_fleet: LocalFleet, client: Client, tmp_path: Path
) -> None:
    """The reconciler knows the lanes, too: an envelope that Redis lost comes back in its own."""
    client.submit("echo", "before", tenant="unlucky").result(timeout_s=WAIT_S)
    with Store(shared_fleet.store_url) as store:
        key = redis_key("scripted", Priority.BULK, store.tenants.enrol("unlucky").lane)
    held = tmp_path / "held"
    busy = client.submit("echo", f"hold {held}", priority="interactive")
    until(held.exists)
    with Redis.from_url(shared_fleet.broker_url) as redis:
        job = client.submit_many("echo", [f"text {number}" for number in range(6_400)], tenant="unlucky")
        assert redis.delete(key), "a worker that computes nothing does not take a hundred envelopes"
    held.unlink()
    assert job.wait(timeout_s=WAIT_S).succeeded == 6_400
    assert busy.result(timeout_s=WAIT_S)["task"] == "echo"
