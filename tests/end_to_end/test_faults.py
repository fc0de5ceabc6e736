"""A whole fleet when its parts die: every item gets exactly one result."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import zlib
from collections import Counter
from pathlib import Path

import pytest
from redis import Redis

from producers import Client, ConfigurationError, ItemExpired, Job
from tests.end_to_end.conftest import SCRIPTED
from tests.end_to_end.processes import device_process, until
from workers import settings
from workers.fleet.local import AlreadyRunning, LocalFleet

TIMEOUT_S = 90


def texts(count: int) -> list[str]:
    return [f"sleep 0.02 item {n:05}" if n % 40 == 0 else f"item {n:05} of a job" for n in range(count)]


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file: a job of `gated` texts goes no further while it is there."""
    path = tmp_path / "gate"
    path.touch()
    return path


def gated(count: int, gate: Path) -> list[str]:
    """Texts of which the first hundreds are computed at once, and none after them while the gate is there."""
    made = texts(count - 1)
    made.insert(500, f"wait while {gate}")  # unlike in size, it is nobody's companion, and runs when it is the oldest
    return made


def assert_each_once_and_right(job: Job, expected: list[str]) -> None:
    """One succeeded result for every item and task, and it is that item's own."""
    status = job.wait(timeout_s=TIMEOUT_S)
    assert (status.succeeded, status.done, status.total) == (2 * len(expected),) * 3
    rows = list(job.results())
    assert Counter((row.seq, row.task) for row in rows).most_common(1)[0][1] == 1
    assert len(rows) == 2 * len(expected)
    for row in rows:
        assert row.output == {"crc": zlib.crc32(expected[row.seq].encode()), "task": row.task}


def wait_until_some_are_done(job: Job, more_than: int = 0) -> int:
    """Return how many results there are once they are more than that; the job must not be over by then."""
    seen = until(lambda: (done := job.progress().done) > more_than and done)
    assert seen < job.progress().total, "the job was over before it could be disturbed"
    return seen


def test_device_processes_die_during_a_job(fleet: LocalFleet, client: Client):
    """SIGKILL of the process that owns the device, again and again: recomputed, and nobody blamed."""
    expected = texts(4000)
    job = client.submit_many(["echo", "shout"], expected)
    done = 0
    for _ in range(3):
        done = wait_until_some_are_done(job, done)
        worker = fleet.workers[0].process
        assert worker is not None
        device_process(worker.pid).kill()
    assert_each_once_and_right(job, expected)


def test_a_worker_dies_during_a_job(fleet: LocalFleet, client: Client, gate: Path):
    """SIGKILL of a worker: its leases run out, the next worker's reconciler publishes again."""
    expected = gated(3000, gate)
    job = client.submit_many(["echo", "shout"], expected)
    wait_until_some_are_done(job)
    service = fleet.workers[0]
    assert service.process is not None
    service.process.kill()
    service.process.wait()
    gate.unlink()
    service.start()
    assert_each_once_and_right(job, expected)


def test_redis_loses_everything(fleet: LocalFleet, client: Client, gate: Path):
    """FLUSHALL in the middle of a job: the store knows what is unfinished, more than a worker ever holds."""
    expected = gated(6000, gate)
    job = client.submit_many(["echo", "shout"], expected)
    wait_until_some_are_done(job)
    with Redis.from_url(fleet.broker_url) as redis:
        redis.flushall()
    gate.unlink()
    assert_each_once_and_right(job, expected)


def test_a_broker_that_dies_is_started_again(fleet: LocalFleet, client: Client, gate: Path):
    """SIGKILL of Valkey: the fleet starts it again where everybody knows it, with what its append-only file holds."""
    expected = gated(3000, gate)
    job = client.submit_many(["echo", "shout"], expected)
    wait_until_some_are_done(job)
    broker = fleet.broker_process
    assert broker is not None
    broker.kill()
    broker.wait()
    gate.unlink()
    watching = threading.Thread(target=fleet.watch)
    watching.start()
    try:
        assert_each_once_and_right(job, expected)
    finally:
        fleet.request_stop()
        watching.join()


def test_an_operator_stops_a_worker(fleet: LocalFleet, client: Client):
    """SIGTERM: what does not finish within the grace period goes back uncounted, for the next worker."""
    expected = ["sleep 1.5 a", *texts(3000), "sleep 1.5 b"]
    job = client.submit_many(["echo", "shout"], expected)
    wait_until_some_are_done(job)
    service = fleet.workers[0]
    service.stop()
    assert service.process is not None
    assert service.process.returncode == 0
    service.start()
    assert_each_once_and_right(job, expected)
    with sqlite3.connect(fleet.home / "store.db") as database:
        (attempts,) = database.execute("SELECT max(attempts) FROM envelopes").fetchone()
    database.close()
    assert attempts == 1


def test_a_job_is_cancelled(fleet: LocalFleet, client: Client):
    """What is queued and what waits ends as cancelled; what was done stays; each item ends once."""
    job = client.submit_many(["echo", "shout"], ["sleep 0.5 first", *(f"sleep 0.05 item {n}" for n in range(2000))])
    done = wait_until_some_are_done(job)
    at_cancel = job.cancel()
    assert at_cancel.succeeded >= done
    status = job.wait(timeout_s=TIMEOUT_S)
    assert status.succeeded + status.cancelled == status.total == 4002
    assert status.cancelled > 2000
    assert status.succeeded >= at_cancel.succeeded


def test_an_item_past_its_deadline_expires(fleet: LocalFleet, client: Client, tmp_path: Path):
    """Behind a batch that goes on for too long there is no time left: it says so, and is not computed."""
    held = tmp_path / "held"
    client.submit("echo", f"hold {held}")
    until(held.exists)
    late = client.submit("echo", "late", deadline_s=0.3)
    over_at = time.time() + 0.4
    until(lambda: time.time() > over_at)
    held.unlink()
    with pytest.raises(ItemExpired):
        late.result(timeout_s=30)


@pytest.mark.long
def test_a_killed_fleet_is_cleared_away_by_the_next(
    fleets, scripted_settings, fleet: LocalFleet, client: Client, gate: Path
):
    """A fleet that was killed leaves its processes; the next one ends them and goes on with the work."""
    expected = gated(3000, gate)
    job = client.submit_many(["echo", "shout"], expected)
    wait_until_some_are_done(job)
    old = [service.process for service in fleet.services]
    fleet._lock.close()  # what the kernel does for a process that was killed; its children live on
    fleet._lock = None
    again = fleets(scripted_settings)
    gate.unlink()
    assert all(process.wait(timeout=10) is not None for process in old)
    with Client(again.broker_url, again.store_url) as other:
        assert_each_once_and_right(other.job(job.id), expected)


def test_a_poisoned_job_finishes(client: Client):
    """Items that kill, raise, or are refused fail by name; the rest of the job succeeds."""
    inputs = [f"item {n:04}" for n in range(300)]
    poison = {7: "die", 100: "raise", 101: "refuse", 250: "short", 299: "bug"}
    for n, text in poison.items():
        inputs[n] = text.ljust(9)
    job = client.submit_many("echo", inputs)
    status = job.wait(timeout_s=TIMEOUT_S)
    failed = {row.seq: row.error["kind"] for row in job.results() if row.state == "failed"}
    assert failed == {7: "DeviceLost", 100: "ModelError", 101: "InvalidInput", 250: "WrongOutput", 299: "ModelError"}
    assert status.succeeded == 295


@pytest.mark.long
def test_a_fleet_whose_model_does_not_load_says_why(fleets, tmp_path, monkeypatch):
    """The reason reaches whoever starts the fleet, and nothing is left running."""
    path = tmp_path / "broken.toml"
    path.write_text(SCRIPTED + '[models.scripted.options]\nfail_to_load = "raise"\n', encoding="utf-8")
    monkeypatch.setenv("ARGOSY_FLEET", str(path))
    with pytest.raises(ConfigurationError, match="scripted not to load"):
        fleets(settings.load())


def test_a_second_fleet_in_the_same_home_is_refused(fleets, scripted_settings, fleet: LocalFleet):
    """Two fleets on one store file and one broker folder would fight: the second says where the first is."""
    with pytest.raises(AlreadyRunning, match=rf"process {os.getpid()}"):
        LocalFleet(scripted_settings, fleet.home, flower=False).start()
