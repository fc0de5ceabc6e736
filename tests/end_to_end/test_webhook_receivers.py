"""Receivers that fail for a minute, hang and redirect, with the retries that everybody has: each end is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx2 as httpx
import pytest

from results_store.store import Store
from tests.end_to_end.gateway_server import Served, serving
from tests.end_to_end.processes import until
from tests.end_to_end.test_webhooks import SECRET, Receiver, receiving, state_is, submitted
from workers.fleet.local import LocalFleet

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

#: The minute in which a receiver answers 500, or not at all.
AWAY_S = 60.0

#: The third retry may come after 5, 30 and 120 s, each with a quarter more.
PATIENCE_S = 300.0

JOBS = 6


@pytest.fixture(scope="module")
def served(shared_fleet: LocalFleet) -> Iterator[Served]:
    secret = {"webhook_secrets": (SECRET,), "webhook_private": True}
    with serving(shared_fleet.broker_url, shared_fleet.store_url, **secret) as found:
        yield found


@pytest.fixture
def caller(served: Served) -> Iterator[httpx.Client]:
    with served.client(served.key("ours")) as client:
        yield client


@pytest.fixture
def store(served: Served) -> Iterator[Store]:
    with Store(served.store_url) as store:
        yield store


def test_each_end_is_told_whatever_its_receiver_does(caller: httpx.Client, store: Store) -> None:
    """None before its last result is stored, and at once where the receiver is right."""
    with ExitStack() as stack:
        right, failing, hanging, turning = (stack.enter_context(receiving(f"127.0.0.{n}")) for n in range(1, 5))
        inside = stack.enter_context(receiving())
        began, hangs = time.monotonic(), threading.Event()
        early: list[str] = []

        def look(receiver: Receiver) -> None:
            told = receiver.messages()[-1]["data"]["id"]
            if store.job(told).finished_at is None:
                early.append(told)

        def fail_for_a_minute() -> None:
            look(failing)
            failing.statuses = [500 if time.monotonic() < began + AWAY_S else 204]

        right.on_request = lambda: look(right)
        failing.on_request = fail_for_a_minute
        hanging.on_request = hangs.wait
        turning.location, turning.statuses = f"{inside.url}/admin", [307] * JOBS + [204]

        jobs = {
            receiver.url: [submitted(caller, receiver.url, ["sleep 0.1", "two"]) for _ in range(JOBS)]
            for receiver in (hanging, failing, turning, right)
        }
        for job in jobs[right.url]:
            until(state_is(caller, job, "delivered"))
        for job in jobs[turning.url]:
            until(state_is(caller, job, "delivered"), PATIENCE_S)
        until(lambda: time.monotonic() > began + AWAY_S, PATIENCE_S)
        hangs.set()
        for job in (*jobs[failing.url], *jobs[hanging.url]):
            until(state_is(caller, job, "delivered"), PATIENCE_S)

        for receiver in (right, failing, hanging, turning):
            came = [
                (headers["webhook-id"], told["data"]["id"])
                for (headers, _), told in zip(receiver.came, receiver.messages(), strict=True)
            ]
            assert {job for _, job in came} == set(jobs[receiver.url])
            assert len({id_ for id_, _ in came}) == JOBS, "an end has the same id in each attempt"
        assert (early, inside.came) == ([], [])
        assert len(right.came) == JOBS
