"""Every alert fires by the deed that it warns of: a real Prometheus, a real fleet, and its rules with seconds for minutes."""

from __future__ import annotations

import re
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import httpx2 as httpx
import pytest
from redis import Redis

from producers import Client
from producers.wire.messages import Priority
from results_store.store import Store
from tests.end_to_end.conftest import SCRIPTED
from tests.end_to_end.page_jobs import submit
from tests.end_to_end.processes import fleet_in, until
from tests.integration.rows import new_envelope, new_job
from tests.monitoring.prometheus import FOLDER, gateway, prometheus
from tests.monitoring.test_prometheus import ALERTS
from workers.fleet.local import LocalFleet

pytestmark = [
    pytest.mark.monitoring,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Prometheus: apt-get install prometheus"),
]

#: The seconds of the rules' minutes: the gateway looks at its fleet every two.
MINUTE_S = 5

FIRES_WITHIN_S = 120.0


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The profile's files, with short minutes."""
    folder = tmp_path / "rules"
    shutil.copytree(FOLDER, folder)
    text = (folder / "alerts.yml").read_text()
    short = re.sub(r"\b(\d+)m\b", lambda found: f"{int(found[1]) * MINUTE_S}s", text)
    assert short.count(f"{2 * MINUTE_S}s") >= 3
    (folder / "alerts.yml").write_text(short)
    monkeypatch.setattr("tests.monitoring.prometheus.FOLDER", folder)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LocalFleet]:
    """A fleet whose worker is started again when it dies."""
    with fleet_in(tmp_path, SCRIPTED) as fleet:
        fleet.workers[0].restarts.longest_wait_s = 0.1
        watching = threading.Thread(target=fleet.watch)
        watching.start()
        try:
            yield fleet
        finally:
            fleet.request_stop()
            watching.join()


def firing(url: str) -> list[str]:
    """The alerts that fire, each as often as it does."""
    found = httpx.get(f"{url}/api/v1/alerts", timeout=30).json()["data"]["alerts"]
    return [one["labels"]["alertname"] for one in found if one["state"] == "firing"]


@pytest.mark.usefixtures("rules")
def test_every_alert_fires_by_its_deed(fleet: LocalFleet, tmp_path: Path) -> None:
    """Deeds that show the same follow each other; each alert fires once, for what was done."""
    seen: list[str] = []
    with ExitStack() as stack:
        served = stack.enter_context(ExitStack())
        _, beside = served.enter_context(gateway(tmp_path))
        url = stack.enter_context(prometheus(tmp_path, beside))

        def fires(*names: str) -> None:
            """Wait until these alerts fire, each once; those that do not are named at the end."""
            for name in names:
                with suppress(AssertionError):
                    until(lambda name=name: name in firing(url), FIRES_WITHIN_S)  # type: ignore[misc]
                    seen.append(name)
                assert firing(url).count(name) <= 1

        until(lambda: httpx.get(f"{url}/api/v1/query?query=argosy_workers", timeout=30).json()["data"]["result"], 120)
        assert firing(url) == []
        with Client(fleet.broker_url, fleet.store_url) as client, Store(fleet.store_url) as store:
            refuse(store, fleet)
            with again_and_again(lambda: client.submit_many("echo", ["refuse"] * 20)):
                fires("ArgosyRefusedMessages", "ArgosyDeadLetters", "ArgosyFailures")
            with full(fleet):
                fires("ArgosyBrokerFull")
            with slow_transactions(fleet, client):
                fires("ArgosyStoreSlow")
            with stopped(fleet):
                fires("ArgosyBrokerAway")
            with without_database(fleet):
                fires("ArgosyStoreAway")
            submit(store, ["x"], priority=Priority.INTERACTIVE)  # of a model that nobody serves
            fires("ArgosyModelUnserved", "ArgosyInteractiveWaits", "ArgosyStuck")
            many = client.submit_many("echo", [f"sleep 0.3 {number}" for number in range(600)], priority="interactive")
            fires("ArgosyBehind")
            client.job(many.id).cancel()
            deadly = tmp_path / "deadly"
            deadly.touch()
            client.submit("echo", f"kill while {deadly}")
            fires("ArgosyWorkerRestarts", "ArgosyWorkersDie")
            deadly.unlink()
            fleet.request_stop()
            fleet.workers[0].stop()
            fires("ArgosyNoWorkers")
        served.close()
        fires("ArgosyMetricsMissing")
    assert sorted({*ALERTS} - {*seen}) == []


def refuse(store: Store, fleet: LocalFleet) -> None:
    """A message that is none, and an envelope whose body cannot be read."""
    with Redis.from_url(fleet.broker_url) as redis:
        redis.lpush("argosy.scripted", b"no message")
    unreadable = replace(new_envelope("unreadable", model="scripted"), payload=b"\xff", created_at=None)
    store.add_envelopes([unreadable], jobs=[new_job(created_at=None)])


@contextmanager
def again_and_again(act: Callable[[], object]) -> Iterator[None]:
    over = threading.Event()

    def run() -> None:
        while not over.wait(1.0):
            act()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def full(fleet: LocalFleet) -> Iterator[None]:
    with Redis.from_url(fleet.broker_url) as redis:
        redis.config_set("maxmemory", int(redis.info("memory")["used_memory"] * 1.05))
        yield
        redis.config_set("maxmemory", 0)


@contextmanager
def slow_transactions(fleet: LocalFleet, client: Client) -> Iterator[None]:
    """Another program locks the database for seconds, again and again, beside a trickle of work."""
    path = fleet.store_url.removeprefix("sqlite:///")

    def lock() -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            time.sleep(4.0)
            database.execute("ROLLBACK")

    def ask() -> None:
        client.submit("echo", f"now {time.monotonic()}", durable=False)

    with again_and_again(lock), again_and_again(ask):
        yield


@contextmanager
def stopped(fleet: LocalFleet) -> Iterator[None]:
    """Redis hangs."""
    broker = fleet.broker_process
    assert broker is not None
    broker.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        broker.send_signal(signal.SIGCONT)


@contextmanager
def without_database(fleet: LocalFleet) -> Iterator[None]:
    """The file of SQLite is moved away."""
    file = Path(fleet.store_url.removeprefix("sqlite:///"))
    away = file.rename(file.with_name("away"))
    try:
        yield
    finally:
        away.rename(file)
