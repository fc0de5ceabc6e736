"""A whole fleet whose worker has a wrong clock: nothing expires early or late, and nothing is held back."""

from __future__ import annotations

import sqlite3
import threading
import zlib
from contextlib import closing
from pathlib import Path

import pytest

from producers import Client, ItemExpired
from tests.end_to_end.conftest import Fleets
from tests.end_to_end.processes import until
from tests.integration.shifted_clock import ShiftedClock
from workers import settings
from workers.fleet.local import LocalFleet

TIMEOUT_S = 90


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ShiftedClock:
    """The clock of all workers that the test starts."""
    folder = tmp_path / "clock"
    folder.mkdir()
    clock = ShiftedClock(folder, 0.0)
    monkeypatch.setenv("PYTHONPATH", clock.path)
    return clock


def assert_right(answer: object, text: str) -> None:
    assert answer == {"crc": zlib.crc32(text.encode()), "task": "echo"}


@pytest.mark.parametrize("ahead_s", [3600.0, pytest.param(-3600.0, marks=pytest.mark.long)])
def test_a_worker_whose_clock_is_wrong_dies(
    fleets: Fleets, scripted_settings: settings.Settings, clock: ShiftedClock, tmp_path: Path, ahead_s: float
) -> None:
    """Its items keep their deadlines, and the next worker gets what it held (F8, F20)."""
    clock.set(ahead_s)
    fleet = fleets(scripted_settings)
    held = tmp_path / "held"
    with Client(fleet.broker_url, fleet.store_url) as client:
        first = client.submit("echo", f"hold {held}", deadline_s=TIMEOUT_S)
        until(held.exists)
        late = client.submit("echo", "late", deadline_s=0.3)
        passed = threading.Event()
        threading.Timer(0.5, passed.set).start()
        passed.wait()
        held.unlink()
        with pytest.raises(ItemExpired):
            late.result(timeout_s=TIMEOUT_S)
        assert_right(first.result(timeout_s=TIMEOUT_S), f"hold {held}")

        texts = [f"hold {held}", *(f"item {n:04}" for n in range(300))]
        job = client.submit_many("echo", texts, deadline_s=TIMEOUT_S)
        until(held.exists)
        _kill(fleet)
        held.unlink()
        fleet.workers[0].start()
        until(held.exists)  # another worker has the envelope
        held.unlink()
        status = job.wait(timeout_s=TIMEOUT_S)
        assert (status.succeeded, status.expired) == (301, 0)


def test_a_clock_is_set_while_items_wait(
    fleets: Fleets, scripted_settings: settings.Settings, clock: ShiftedClock, tmp_path: Path
) -> None:
    """Ten minutes ahead, ten minutes back: items that wait at the worker keep their deadlines."""
    fleet = fleets(scripted_settings)
    held = tmp_path / "held"
    with Client(fleet.broker_url, fleet.store_url) as client:
        first = client.submit("echo", f"hold {held}")
        until(held.exists)
        waiting = [client.submit("echo", f"item {n}", deadline_s=TIMEOUT_S) for n in range(10)]
        until(lambda: _claimed(fleet) > 1)
        clock.set(600.0)
        waiting += [client.submit("echo", f"item {n}", deadline_s=TIMEOUT_S) for n in range(10, 20)]
        clock.set(-600.0)
        waiting += [client.submit("echo", f"item {n}", deadline_s=TIMEOUT_S) for n in range(20, 30)]
        held.unlink()
        assert_right(first.result(timeout_s=TIMEOUT_S), f"hold {held}")
        for n, handle in enumerate(waiting):
            assert_right(handle.result(timeout_s=TIMEOUT_S), f"item {n}")


def _kill(fleet: LocalFleet) -> None:
    process = fleet.workers[0].process
    assert process is not None
    process.kill()
    process.wait()


def _claimed(fleet: LocalFleet) -> int:
    """Return the number of envelopes with a lease."""
    with closing(sqlite3.connect(fleet.home / "store.db")) as database:
        (count,) = database.execute("SELECT count(*) FROM envelopes WHERE leased_until IS NOT NULL").fetchone()
    return int(count)
