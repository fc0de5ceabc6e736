"""A full disk under SQLite: an error with a remedy, nothing half written, and on it goes when there is room again.

PostgreSQL says the same by SQLSTATE 53100, which `tests/unit/test_store_pure.py` has.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from results_store.errors import StoreUnavailable
from results_store.records import Transaction
from results_store.store import Store
from results_store.writer import Writer
from tests.integration.rows import new_envelope, new_job, result, submit

ROWS = 4000


class PageLimit:
    """SQLite's own limit of pages, at what the file has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pages = 0x7FFFFFFE

    def watch(self, store: Store) -> None:
        @event.listens_for(store._database._engine, "checkout")
        def limit(connection: Any, *_: object) -> None:
            connection.execute(f"PRAGMA max_page_count = {self._pages}")

    def end(self) -> None:
        self._pages = 1  # SQLite takes it for as few as there are

    def make(self) -> None:
        self._pages = 0x7FFFFFFE


class SmallDisk:
    """A file system of a few MB, filled up by a file beside the database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def watch(self, store: Store) -> None:
        """The file system sees to it."""

    def end(self) -> None:
        free_bytes = shutil.disk_usage(self.folder).free
        self._filler.write_bytes(bytes(free_bytes))

    def make(self) -> None:
        self._filler.unlink()


Room = PageLimit | SmallDisk


@pytest.fixture(params=["page limit", "small disk"])
def room(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Room]:
    """A folder with room that can end: by a limit of SQLite's, and by a real disk where one may be mounted."""
    if request.param == "page limit":
        yield PageLimit(tmp_path)
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    yield SmallDisk(tmp_path)
    subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.fixture
def store(room: Room) -> Iterator[Store]:
    store = Store(f"sqlite:///{room.folder / 'store.db'}", timeout_s=5)
    store.migrate()
    with store:
        room.watch(store)
        yield store


def test_a_full_disk_is_an_outage_that_leaves_nothing_behind(room: Room, store: Store) -> None:
    """All or nothing, also where the disk ends in the middle; reading goes on, and so does writing, later."""
    submit(store, items=ROWS)
    store.commit([result(0)])
    room.end()

    with pytest.raises(StoreUnavailable, match="free some disk space; no data is lost"):
        store.commit([result(seq) for seq in range(ROWS)], done=["e0"])
    with pytest.raises(StoreUnavailable, match="free some disk space"):
        store.add_envelopes([new_envelope("big", job="other", payload=bytes(1_000_000))], jobs=[new_job("other")])

    assert [row.seq for row in store.results("job")] == [0]
    assert [job.id for job in store.jobs()] == ["job"]
    room.make()
    store.commit([result(seq) for seq in range(ROWS)], done=["e0"])
    store.add_envelopes([new_envelope("big", job="other", payload=bytes(1_000_000))], jobs=[new_job("other")])
    assert (store.job("job").succeeded, store.job("job").finished) == (ROWS, True)


def test_the_writer_waits_for_room(room: Room, store: Store) -> None:
    """A worker keeps what it has computed until somebody has made room."""
    submit(store, items=ROWS)
    warned = threading.Event()

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "free some disk space" in record.getMessage():
                warned.set()

    logging.getLogger("results_store.writer").addHandler(watch := Watch())
    with Writer(store, worker="w1", lease_s=60, first_retry_s=0.01, last_retry_s=0.05) as committer:
        room.end()
        rows = [result(seq) for seq in range(ROWS)]
        waiting = threading.Thread(target=committer.commit, args=(Transaction(results=rows, done=["e0"]),))
        waiting.start()
        assert warned.wait(30)
        assert waiting.is_alive()
        room.make()
        waiting.join()
    logging.getLogger("results_store.writer").removeHandler(watch)

    assert store.job("job").finished
