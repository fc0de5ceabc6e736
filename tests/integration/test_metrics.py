"""The metrics of a fleet and the number of workers for a scaler, from a real store and broker; no worker is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2 as httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from starlette.types import Receive, Scope, Send

from producers import AsyncClient
from producers.gateway.app import create_app
from producers.gateway.metrics import fleet_monitor
from producers.gateway.metrics.health_listener import HealthListener
from producers.wire.live_nodes import NODES, node_key
from producers.wire.queues import MOST_REFUSED, RefusedMessage, note_refused, queue_name
from results_store.records import ResultState
from results_store.sql.monitoring.fleet_figures import FailureTally
from results_store.sql.waiting.schedules import Schedule
from results_store.store import Store
from tests.end_to_end.gateway_server import SETTINGS, served
from tests.integration.rows import batch, new_envelope, new_job, result

HOSTILE = 'an "evil"\\ name\n# HELP x'

#: Questions without an answer: a number for a mistyped model would be 0 for ever.
REFUSED = (("model=txet", "model"), ("bulk_s=0", "bulk_s"), ("bulk_s=nan", "bulk_s"), ("most=3", "most"))

#: The statements are run on both databases by `test_the_figures_of_the_store`.
ON_SQLITE = pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)

Samples = dict[tuple[str, tuple[str, ...]], float]


@contextmanager
def listening(broker_url: str, store_url: str) -> Iterator[httpx.Client]:
    """Serve the port beside a gateway."""
    app = create_app(SETTINGS, lambda: AsyncClient(broker_url, store_url, store_timeout_s=10))
    beside = HealthListener(app)

    async def both(scope: Scope, receive: Receive, send: Send) -> None:
        await (app if scope["type"] == "lifespan" else beside)(scope, receive, send)

    with served(both) as url, httpx.Client(base_url=url, timeout=60) as client:  # type: ignore[arg-type]
        yield client


@pytest.fixture
def beside(broker_url: str, store_url: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """The port beside the gateway of a fleet without workers; each request looks anew."""
    monkeypatch.setattr(fleet_monitor, "FRESH_S", 0.0)
    monkeypatch.setattr(fleet_monitor, "SHARE", 0.0)
    monkeypatch.setenv("ARGOSY_BROKER_URL", broker_url)
    monkeypatch.setenv("ARGOSY_STORE_URL", store_url)
    with listening(broker_url, store_url) as client:
        yield client


def scraped(beside: httpx.Client) -> Samples:
    """Return the samples by name and values of labels, which are in the order of the labels' names, read by the library's parser."""
    answer = beside.get("/metrics")
    assert answer.status_code == 200
    families = text_string_to_metric_families(answer.text)
    return {(one.name, tuple(one.labels.values())): one.value for family in families for one in family.samples}


def ran(store: Store, number: int, at: float, **changes: Any) -> None:
    """Store a batch of an item each of two tasks, which waited 20 ms, with the item's result."""
    trace = {"formed_at": at, "jobs": ["job"], "items": [[0, number, 0, 9, 10, 20.0]]}
    given = {"items": 1, "priorities": {"9": 1}, "forward_s": 0.5, "started_at": at, "trace": trace, **changes}
    facts = {"envelope": f"e{number}", "queued_at": at - 2, "computed_at": at}
    store.commit([result(number, **facts)], done=[f"e{number}"], batches=[batch(f"b{at}-{number}", **given)])


@ON_SQLITE
def test_the_metrics_are_those_of_the_store(beside: httpx.Client, store: Store) -> None:
    """Counters begin with the first scrape; queues, costs and times are the store's. Hostile names stay names."""
    now = store.now()
    store.tenants.enrol(HOSTILE)
    store.create_job(new_job(tenant=HOSTILE))
    store.add_envelopes([new_envelope(f"e{number}", items=1, created_at=now - 60) for number in range(2)])
    store.add_envelopes([new_envelope("later", model=HOSTILE, items=7, priority=3, created_at=now - 30)])
    store.claim(["e0"], worker="w", lease_s=60)
    ran(store, 0, now - 10)
    first = scraped(beside)
    assert first["argosy_store_up", ()] == first["argosy_broker_up", ()] == 1
    assert first["argosy_item_cost_seconds", ("text",)] == 0.5
    assert first["argosy_queue_items", (HOSTILE, "standard")] == 7
    assert first["argosy_queue_work_seconds", ("text", "bulk")] == 0.5
    assert first["argosy_queue_oldest_age_seconds", ("text", "bulk")] >= 60
    assert ("argosy_queue_work_seconds", (HOSTILE, "standard")) not in first  # its cost is unknown
    assert ("argosy_batches_total", ("text",)) not in first

    ran(store, 1, now, device=HOSTILE, cached_rows=1)
    broken = result(9, state=ResultState.FAILED, output=None, error={"kind": "ModelError", "message": "broke"})
    store.commit([broken])
    second = scraped(beside)
    assert second["argosy_batches_total", ("text",)] == 1
    assert second["argosy_batch_cached_rows_total", ("text",)] == 1
    assert second["argosy_device_busy_seconds_total", (HOSTILE, "w1")] == 0.5
    assert second["argosy_tenant_device_seconds_total", (HOSTILE,)] == 0.5
    assert second["argosy_forward_seconds_count", ("text", "bulk", "topic")] == 1
    assert second["argosy_item_wait_seconds_sum", ("text", "bulk")] == 0.02
    assert second["argosy_item_seconds_sum", ("bulk", "topic")] >= 2
    assert second["argosy_failed_results_total", ("ModelError", "topic")] == 1
    assert scraped(beside)["argosy_batches_total", ("text",)] == 1, "a batch was counted twice"


@ON_SQLITE
def test_the_newest_refusal_has_its_time(beside: httpx.Client, broker_url: str) -> None:
    """Also once the list is full, whose length then tells nothing; another program's entry has none."""
    name = ("argosy_broker_last_refusal_time_seconds", ())
    assert name not in scraped(beside)
    with Redis.from_url(broker_url) as redis:
        for at in (1000.0, 2000.0):
            note_refused(
                redis,
                *[RefusedMessage(at=at + n, queue="q", cause="c", sha256="", bytes=0) for n in range(MOST_REFUSED)],
            )
            found = scraped(beside)
            assert (found["argosy_broker_refused_messages", ()], found[name]) == (MOST_REFUSED, at + MOST_REFUSED - 1)
        redis.lpush("argosy.refused", b"no refusal")
        assert name not in scraped(beside)


@ON_SQLITE
def test_the_scaler_goes_from_and_to_zero(beside: httpx.Client, store: Store, broker_url: str) -> None:
    """Without a worker: nothing waits, work of unknown and of known cost, a deadline, messages outside the store."""

    def wanted(**query: object) -> dict[str, Any]:
        answer = beside.get("/scale", params=query)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    for query, field in REFUSED:
        answer = beside.get(f"/scale?{query}")
        assert (answer.status_code, answer.json()["field"]) == (422, field)
    assert (wanted()["workers"], wanted()["live"]) == (0, 0)
    now = store.now()
    store.create_job(new_job())
    store.add_envelopes([new_envelope("e0", items=2400, results=1, created_at=now)])
    assert (wanted()["workers"], wanted()["unmeasured"]) == (1, ["text"])
    ran(store, 5, now)  # 0.5 s for an item: 1,200 s of work
    assert wanted()["workers"] == wanted(model="text", bulk_s=600)["workers"] == 2
    assert wanted(bulk_s=60)["workers"] == 20
    assert wanted(model="vision")["workers"] == 0
    store.add_envelopes([new_envelope("due", created_at=now, deadline_at=now + 120)])
    assert wanted()["workers"] >= 10
    assert "before a deadline" in wanted()["reason"]
    store.commit([result(0), result(1, envelope="due")], done=["e0", "due"])
    assert (wanted()["workers"], wanted()["reason"]) == (0, "nothing waits")
    with Redis.from_url(broker_url) as redis:
        redis.lpush(queue_name("text"), b"{}")
        assert (wanted()["workers"], wanted(model="vision")["workers"]) == (1, 0)
        redis.delete(queue_name("text"))
        assert wanted()["workers"] == 0
        store.schedules.add(Schedule(name="nightly", submission="{}", next_at=now - 1))
        assert (wanted()["workers"], wanted()["reason"]) == (1, "a scheduled submission is due")
        store.schedules.remove("nightly")
        redis.sadd(NODES, "node")
        redis.set(node_key("node"), b'{"name": "node", "device": "cpu", "models": {"text": {"revision": "r"}}}')
        assert (wanted(model="text")["live"], wanted(model="vision")["live"]) == (1, 0)


@ON_SQLITE
def test_without_the_broker_the_store_is_measured_and_nothing_is_scaled(
    store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scaler that gets no number keeps the workers; a scrape tells which part does not answer."""
    monkeypatch.setenv("ARGOSY_STORE_URL", store_url)
    with listening("redis://127.0.0.1:1/0", store_url) as beside:
        assert beside.get("/scale").status_code == 503
        found = scraped(beside)
        assert (found["argosy_store_up", ()], found["argosy_broker_up", ()]) == (1, 0)
        assert ("argosy_wanted_workers", ()) not in found
        assert beside.get("/api/jobs").status_code == 404
        assert beside.get("/healthz").status_code == 200
        assert scraped(beside)["argosy_gateway_request_seconds_count", ("/healthz", "200")] == 1
        assert beside.post("/metrics").status_code == 405


def test_the_figures_of_the_store(store: Store) -> None:
    """Each class of deadlines is a line of its own; leases, repetitions and failures are counted."""
    now = store.now()
    store.create_job(new_job(tenant="ours"))
    deadlines = {"e0": None, "e1": now + 100, "e2": now + 110, "e3": now - 1, "e4": now + 10**6}
    added = [new_envelope(id_, items=2, created_at=now, deadline_at=at) for id_, at in deadlines.items()]
    store.add_envelopes(added)
    store.claim(["e0"], worker="w", lease_s=60)
    at, demand = store.figures.demand()
    assert at >= now
    assert sorted((one.due_at or 0, one.envelopes, one.items, one.held) for one in demand) == [
        (0, 1, 2, 1), (now - 1, 1, 2, 0), (now + 100, 2, 4, 0), (now + 10**6, 1, 2, 0)
    ]  # fmt: skip
    assert [one.unclaimed_since for one in demand if one.held] == [None]
    failed = result(0, state=ResultState.FAILED, output=None, error={"kind": "ModelError"})
    store.commit([failed, result(1, queued_at=now, computed_at=now)])
    assert store.figures.failures(0) == [FailureTally("topic", "ModelError", 1)]
    assert store.figures.failures(at + 3600) == []
    (times,) = store.figures.times_of({"job": [0, 1], "none": [0]})
    assert (times.task, times.priority, times.queued_at) == ("topic", 9, now)
    assert store.figures.tenants_of(["job", "none"]) == {"job": "ours"}
    assert store.figures.dead_letters() == 0
